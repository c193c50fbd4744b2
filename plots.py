"""Draw a run's figures from what it left in its directory, also while it is still going.

    python plots.py outputs/toy                                       # into outputs/toy/figures
    python plots.py outputs/toy-1 outputs/toy-2 --output figures      # several runs over each other

reward.png: each reward, the completions' length, entropy and the groups without spread, by step
case.png: what the model wrote to one and the same prompt early, midway and at the end
word_distribution.png: words, pairs and triples in the reasoning, first steps against last steps
aha.png: how many completions reflect, and whether those that do are more often right

Exit codes: 0 done, 2 there is nothing to draw from.
"""

import argparse
import json
import re
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; needs no display

import pandas
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch, Rectangle

import intervals
import rewards

# Okabe and Ito's colours, which the colour-blind can tell apart; line styles and markers do so in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
PHRASE, TAG = "#F0E442", COLOURS[0]
WIDTH = 9.0  # inches. A README shows a figure about 830 pixels wide: eight points are then ten pixels
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}
AHA = 0.1  # the share of reflecting completions that is marked
BINS = 10  # a run's steps in aha.png
EDGE = 0.1  # the share of steps that are its first or last in word_distribution.png
NGRAMS = 12  # the most frequent ones
RARE = 0.01  # occurrences a completion below which an n-gram is not shown


class NothingToDraw(ValueError):
    """What a run's directory lacks, in one line."""


@dataclass
class Run:
    """What a run's directory holds so far.

    Attributes:
        name: for legends.
        metrics: a row a logged step, with TRL's metrics as columns, and `step`.
        completions: a row a completion: `step`, `prompt`, `completion` (both text), `reflects`, and the rewards.
        validation: the same of the held-out rows, at each validation.
    """

    name: str
    metrics: pandas.DataFrame
    completions: pandas.DataFrame
    validation: pandas.DataFrame

    @property
    def reward_names(self) -> list[str]:
        names = [key[8:-5] for key in self.metrics if key.startswith("rewards/") and key.endswith("/mean")]
        ours = list(rewards.REWARDS)
        return sorted(names, key=lambda name: ours.index(name) if name in ours else len(ours))


# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


def read_run(directory: str, name: str) -> Run:
    """Read a run's directory, as `rl_grpo.py` (or another script around TRL's trainer) leaves it.

    Raises:
        NothingToDraw: there is no such run, or it has no metrics yet.
    """
    if not Path(directory).is_dir():
        raise NothingToDraw(f"there is no run {directory}")
    # TRL alone writes the metrics only with a checkpoint, the newest of which has the highest number.
    states = [Path(directory, "trainer_state.json")]
    states += sorted(Path(directory).glob("checkpoint-*/trainer_state.json"), key=lambda file: -len(file.read_bytes()))
    states = [file for file in states if file.is_file()]
    if not states:
        raise NothingToDraw(f"{directory} has no trainer_state.json: not a run, or no step of it is logged yet")
    history = None
    for file in states:
        try:
            history = json.loads(file.read_text())["log_history"]
            break
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            say(f"{file} is cut off or no trainer's, and left out")
    if history is None:
        raise NothingToDraw(f"{directory} has no metrics that can be read")
    logged = [entry for entry in history if "reward" in entry]
    if not logged:
        raise NothingToDraw(f"{directory} has no logged step of GRPO yet")
    metrics = pandas.DataFrame(logged).drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
    last = metrics["step"].iloc[-1]
    completions = read_tables(Path(directory, "completions"), last)
    return Run(name, metrics, completions, read_tables(Path(directory, "validation"), last))


def read_tables(folder: Path, last_step: int) -> pandas.DataFrame:
    """The completions in a folder's parquet files; without those of steps that a stopped run is yet to repeat."""
    tables = []
    for file in sorted(folder.glob("*.parquet")):
        try:
            table = pandas.read_parquet(file)
            table = table[table["step"] <= last_step]
            table["prompt"] = [p if isinstance(p, str) else p[-1]["content"] for p in table["prompt"]]
            table["completion"] = [rewards.text(completion) for completion in table["completion"]]
        except (OSError, ValueError, KeyError):
            say(f"{file} is cut off or no table of completions, and left out")
            continue
        table["reflects"] = [bool(rewards.reflection_phrases(completion)) for completion in table["completion"]]
        tables.append(table)
    empty = pandas.DataFrame(columns=["step", "prompt", "completion", "reflects"])
    return pandas.concat(tables, ignore_index=True) if tables else empty


def say(line: str) -> None:
    print(f"plots.py: {line}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------------------------------------


def smoothing(steps: int) -> int:
    """How many steps a smoothed point is the mean of: an odd number, a fourteenth of the run."""
    return steps // 14 | 1


def smooth(values: pandas.Series) -> pandas.Series:
    """The mean of the steps around each step, fewer at the ends."""
    return values.rolling(smoothing(len(values)), center=True, min_periods=1).mean()


def share_that_reflects(run: Run) -> pandas.Series:
    """By step, the share of completions with at least one of the reward's phrases."""
    return run.completions.groupby("step")["reflects"].mean()


def first_aha(run: Run) -> int | None:
    """The first step at which more than `AHA` of the completions reflect."""
    share = share_that_reflects(run)
    steps = share.index[share > AHA]
    return int(steps[0]) if len(steps) else None


def words_of(completion: str) -> list[list[str]]:
    """The words of the reasoning in order, lower case, in stretches that numbers and tags end.

    The reasoning is what is before the answer. As for the reward, punctuation does not matter.
    """
    reasoning = re.split(r"</think>|<answer>", completion.lower(), maxsplit=1)[0].replace("<think>", "")
    return [re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", stretch) for stretch in re.split(r"[\d<]", reasoning)]


def count_ngrams(completions, n: int) -> Counter:
    """How often each n words occur in a row in the reasoning of all completions together."""
    return Counter(
        " ".join(words[start : start + n])
        for completion in completions
        for words in words_of(completion)
        for start in range(len(words) - n + 1)
    )


def edges(run: Run) -> tuple[list[int], list[int]]:
    """The run's first steps and its last ones, as far as completions are there."""
    steps = sorted(run.completions["step"].unique())
    count = max(1, round(EDGE * len(steps)))
    return steps[:count], steps[-count:]


def ngram_rates(run: Run, n: int) -> pandas.DataFrame:
    """Occurrences a completion of the most frequent n-grams and of the reward's phrases, in `first` and `last` steps.

    Returns:
        A row an n-gram, the one that is most frequent at either end on top.
    """
    rates = {}
    for end, steps in zip(("first", "last"), edges(run), strict=True):
        chosen = run.completions.loc[run.completions["step"].isin(steps), "completion"]
        rates[end] = pandas.Series(count_ngrams(chosen, n), dtype=float) / len(chosen)
    table = pandas.DataFrame(rates).fillna(0.0)
    table["most"] = table.max(axis=1)
    table = table.rename_axis("ngram").sort_values(["most", "ngram"], ascending=[False, True])
    table = table[table["most"] >= RARE]
    chosen = table.index.isin(rewards.REFLECTION_PHRASES)
    chosen[:NGRAMS] = True
    return table.loc[chosen, ["first", "last"]]


def does_it_help(run: Run) -> pandas.DataFrame:
    """Accuracy of the completions that reflect and of those that do not, over `BINS` stretches of steps.

    Completions of one prompt at one step are a group, and alike: the intervals allow for that. `gain` is the mean,
    over the groups that have both kinds, of the difference in accuracy between them. That is the fairer comparison:
    among all completions, those that reflect may have met other problems.

    Returns:
        A row a stretch: `step` (its middle), `with`, `without`, `gain`, each with `_low` and `_high` (95 %); NaN where
        there is none.
    """
    table = run.completions
    if "accuracy" not in table:
        return pandas.DataFrame()
    table = table.dropna(subset="accuracy")
    steps = sorted(table["step"].unique())
    count = min(BINS, len(steps))
    rows = []
    for number in range(count):
        chosen = steps[number * len(steps) // count : (number + 1) * len(steps) // count]
        row = {"step": (chosen[0] + chosen[-1]) / 2}
        groups = table[table["step"].isin(chosen)].groupby(["step", "prompt", "reflects"])["accuracy"]
        right, of = groups.sum().unstack(fill_value=0), groups.count().unstack(fill_value=0)
        for kind, name in ((True, "with"), (False, "without")):
            if kind in of:
                row[name] = right[kind].sum() / of[kind].sum()
                row[f"{name}_low"], row[f"{name}_high"] = intervals.of_share_in_groups(
                    list(right[kind]), list(of[kind])
                )
        if True in of and False in of:
            both = (of[True] > 0) & (of[False] > 0)
            gains = list((right[True] / of[True] - right[False] / of[False])[both])
            if len(gains) > 1:
                row["gain"] = sum(gains) / len(gains)
                low, high = intervals.of_mean(gains)
                row["gain_low"], row["gain_high"] = max(low, -1.0), min(high, 1.0)
        rows.append(row)
    columns = [f"{name}{end}" for name in ("with", "without", "gain") for end in ("", "_low", "_high")]
    return pandas.DataFrame(rows, columns=["step", *columns])


def pick_case(run: Run) -> tuple[str, pandas.DataFrame] | None:
    """A prompt, and what was written to it early, midway and at the end.

    Of the held-out prompts the first that was answered wrong at first, and at the end right and with a reflection;
    if there is none, the first answered wrong and then right; if there is none, the first. Without a validation,
    the training prompt that came again after the most steps.

    Returns:
        How it was picked, and one to three rows of `Run.validation` or `Run.completions` by step; None if no prompt
        came twice.
    """
    if len(run.validation):
        table = run.validation.drop_duplicates(["step", "prompt"])
        by_step = table.set_index("prompt").groupby("step")
        first = by_step.get_group(table["step"].min())
        last = by_step.get_group(table["step"].max()).reindex(first.index)
        kinds = {"": pandas.Series(True, first.index)}
        if "accuracy" in table:
            mended = " that were wrong at first and right at the end"
            kinds[mended] = (first["accuracy"] == 0) & (last["accuracy"] == 1)
            kinds[f"{mended}, with a reflection"] = kinds[mended] & last["reflects"].eq(True)
        which, like = next((which, like) for which, like in reversed(kinds.items()) if like.any())
        prompt = like.index[like][0]
        how = f"the first of {like.sum()} held-out problems{which}" + (f" (of {len(like)})" if which else "")
    else:
        table = run.completions.drop_duplicates(["step", "prompt"])
        span = table.groupby("prompt")["step"].agg(lambda steps: steps.max() - steps.min())
        if not len(span) or span.max() == 0:
            return None
        prompt, how = span.idxmax(), "a training problem that came again"
    shown = table[table["prompt"] == prompt].sort_values("step")
    steps = shown["step"]
    middle = steps.iloc[(steps - (steps.min() + steps.max()) / 2).abs().argmin()]
    return how, shown[steps.isin({steps.min(), middle, steps.max()})]


# ---------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------


def draw_reward(runs: list[Run]) -> Figure:
    """Small multiples: the sum of the rewards, each reward, length, entropy and groups without spread."""
    names = list(dict.fromkeys(name for run in runs for name in run.reward_names))
    panels = [
        ("reward (weighted sum)", "reward", "mean of completions"),
        *((f"{name} reward", f"rewards/{name}/mean", "mean of completions") for name in names),
        ("completion length", "completions/mean_length", "tokens, mean"),
        ("entropy", "entropy", "nats a token, mean"),
        ("no spread of rewards", "frac_reward_zero_std", "share of groups"),
    ]
    panels = [panel for panel in panels if any(panel[1] in run.metrics for run in runs)]
    columns = 4
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, 1.9 * rows + 0.5), sharex=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    handles = []
    for number, run in enumerate(runs):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
        window = smoothing(len(run.metrics))
        aha = first_aha(run)
        label = f"{run.name}; thick: mean of {window} steps" if window > 1 else run.name
        for axis, (_, key, _) in zip(axes.flat, panels, strict=False):
            if key in run.metrics:
                values = run.metrics[key].astype(float)
                axis.plot(run.metrics["step"], values, color=colour, linewidth=0.7, alpha=0.4)
                (handle,) = axis.plot(
                    run.metrics["step"], smooth(values), line, color=colour, linewidth=1.7, label=label
                )
            if aha is not None:
                mark = axis.axvline(aha, color=colour, linestyle=(0, (1, 1.5)), linewidth=1.2)
        handles.append(handle)
        if aha is not None:
            mark.set_label(
                f"step {aha}: over {AHA * 100:.0f} % of completions reflect"
                + (f" ({run.name})" if len(runs) > 1 else "")
            )
            handles.append(mark)
    for place, (axis, (title, _, unit)) in enumerate(zip(axes.flat, panels, strict=False)):
        axis.set(title=title, ylabel=unit)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        if place + columns >= len(panels):
            axis.set_xlabel("optimizer step")
            axis.tick_params(labelbottom=True)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def wrap(pieces: list[tuple[str, str | None]], width: int, most_lines: int = 30) -> list[list[tuple[str, str | None]]]:
    """Pieces of text (see `rewards.highlight`) as lines of single characters, each with its piece's kind.

    Of more than `most_lines`, the ones in the middle give way to a note of kind `"note"`.
    """
    characters = [(character, kind) for text, kind in pieces for character in text]
    lines, start = [], 0
    for paragraph in "".join(character for character, _ in characters).split("\n"):
        for part in textwrap.wrap(paragraph, width, drop_whitespace=False, expand_tabs=False) or [""]:
            lines.append(characters[start : start + len(part)])
            start += len(part)
        start += 1
    if len(lines) > most_lines:
        kept = most_lines // 2
        lines[kept:-kept] = [[(character, "note") for character in f"[… {len(lines) - 2 * kept} lines …]"]]
    return lines


def in_font(text: str, family: str) -> str:
    """Text with a box for every character that a font does not have, as such a font would show it, but unwarned."""
    glyphs = get_font(findfont(FontProperties(family=family)))
    return "".join(character if glyphs.get_char_index(ord(character)) else "□" for character in text)


def draw_case(runs: list[Run]) -> Figure | None:
    """A row a run: the prompt, and under it what was written to it at up to three steps, side by side."""
    cases = [(run, *case) for run in runs if (case := pick_case(run))]
    if not cases:
        return None
    font = {"family": "DejaVu Sans Mono", "size": 8}
    figure = pyplot.figure(figsize=(WIDTH, 1), layout="none", dpi=STYLE["savefig.dpi"])
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    # In inches, as is all that follows: a letter's advance as it comes out in whole pixels, a line's height.
    hundred, _, _ = figure.canvas.get_renderer().get_text_width_height_descent("m" * 100, FontProperties(**font), False)
    letter, line, margin = hundred / 100 / figure.dpi, 1.45 * font["size"] / 72, 0.15

    def write(x: float, y: float, width: float, *pieces: tuple[str, str | None]) -> float:
        """Write text into a column from its upper left corner; returns where its next line would be."""
        for content in wrap(pieces, int(width / letter)):
            for kind, colour in (("phrase", "black"), ("tag", TAG), ("note", "#666666"), (None, "black")):
                shown = "".join(character if of == kind else " " for character, of in content).rstrip()
                style = {"color": colour, "weight": "bold" if kind in ("phrase", "tag") else "normal", **font}
                if shown:
                    axis.text(x, y, in_font(shown, font["family"]), va="top", parse_math=False, **style)
            for column, (_, kind) in enumerate(content):
                if kind == "phrase":
                    place = (x + column * letter, y - 0.02)
                    axis.add_patch(Rectangle(place, letter, line - 0.02, color=PHRASE, linewidth=0, zorder=0))
            y += line
        return y

    y = margin
    for run, how, shown in cases:
        rows = [row for _, row in shown.iterrows()]
        if len(runs) > 1:
            y = write(margin, y, WIDTH - 2 * margin, (run.name, "tag"))
        y = write(margin, y, WIDTH - 2 * margin, (how[0].upper() + how[1:], "note"))
        prompt = rows[0]["prompt"].strip()
        prompt = prompt if len(prompt) <= 600 else f"… {prompt[-600:]}"
        gold = f" (answer: {rows[0]['gold_answer']})" if "gold_answer" in shown else ""
        top = write(margin, y + 0.4 * line, WIDTH - 2 * margin, (prompt + gold, None)) + 0.4 * line

        box = (WIDTH - margin) / len(rows) - margin
        lefts = [margin + place * (box + margin) for place in range(len(rows))]
        inner = box - margin
        ends = []
        for left, row in zip(lefts, rows, strict=True):
            y = write(left + margin / 2, top + 0.3 * line, inner, (f"step {row['step']}", "note")) + 0.3 * line
            ends.append(write(left + margin / 2, y, inner, *rewards.highlight(row["completion"].strip())))
        middle = max(ends) + 0.3 * line
        ends = []
        for left, row in zip(lefts, rows, strict=True):
            values = {name: row[name] for name in run.reward_names if not pandas.isna(row.get(name))}
            values["sum"] = sum(values.values())
            # A no-break space, so that a name stays with its value.
            scores = " · ".join(f"{name}\u00a0{value:.2f}" for name, value in values.items())
            ends.append(write(left + margin / 2, middle + 0.3 * line, inner, (scores, None)))
        bottom = max(ends) + 0.2 * line
        for left in lefts:
            axis.add_patch(Rectangle((left, top), box, bottom - top, fill=False, color="#999999"))
            axis.plot([left, left + box], [middle, middle], color="#cccccc", linewidth=0.8)
        y = bottom + 1.5 * line
    height = y - line
    figure.set_size_inches(WIDTH, height)
    axis.set(xlim=(0, WIDTH), ylim=(height, 0))
    return figure


def draw_words(runs: list[Run]) -> Figure | None:
    """A row a run: for one, two and three words in a row, how often they are said in the first and the last steps."""
    runs = [run for run in runs if len(run.completions)]
    tables = [[ngram_rates(run, n) for n in (1, 2, 3)] for run in runs]
    if not any(len(table) for row in tables for table in row):
        return None
    heights = [0.19 * max(map(len, row)) + 1.1 for row in tables]
    figure = pyplot.figure(figsize=(WIDTH, sum(heights) + 0.3))
    parts = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)
    for run, row, part in zip(runs, tables, parts.flat, strict=True):
        first, last = (f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}" for steps in edges(run))
        part.suptitle(f"{run.name}: steps {first} (open circles) and {last} (filled)", fontsize=9)
        run_axes = part.subplots(1, 3)
        for title, table, axis in zip(("words", "pairs of words", "triples of words"), row, run_axes, strict=True):
            places = range(len(table))
            axis.hlines(places, table["first"], table["last"], color="#bbbbbb", linewidth=2, zorder=1)
            open_circle = {"color": "black", "markerfacecolor": "white"}
            axis.plot(table["first"], places, "o", markersize=5, clip_on=False, **open_circle, label="first steps")
            axis.plot(table["last"], places, "o", markersize=5, clip_on=False, color=COLOURS[0], label="last steps")
            shown = [ngram if len(ngram) <= 22 else f"{ngram[:21]}…" for ngram in table.index]
            axis.set_yticks(places, [in_font(ngram, "DejaVu Sans") for ngram in shown])
            for ngram, label in zip(table.index, axis.get_yticklabels(), strict=True):
                if ngram in rewards.REFLECTION_PHRASES:
                    label.set(weight="bold", bbox={"facecolor": PHRASE, "edgecolor": "none", "pad": 1})
            axis.set(title=title, xlabel="occurrences a completion")
            axis.set_ylim(max(len(table), 1) - 0.4, -0.6)
            axis.set_xlim(left=0)
    handles, _ = run_axes[0].get_legend_handles_labels()
    paid = Patch(facecolor=PHRASE, label="phrases that the reflection reward pays")
    figure.legend(handles=[*handles, paid], loc="outside lower center", ncols=3)
    return figure


def draw_aha(runs: list[Run]) -> Figure | None:
    """Does it help: the share that reflects, accuracy with and without, and the difference within a prompt."""
    runs = [run for run in runs if len(run.completions)]
    if not runs:
        return None
    figure, (often, right, gain) = pyplot.subplots(1, 3, figsize=(WIDTH, 3.1))
    for number, run in enumerate(runs):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
        share = share_that_reflects(run)
        often.plot(share.index, share, color=colour, linewidth=0.7, alpha=0.4)
        often.plot(share.index, smooth(share), line, color=colour, linewidth=1.7, label=run.name)
        table = does_it_help(run)
        if not len(table):
            continue
        whose = f" ({run.name})" if len(runs) > 1 else ""
        apart = (share.index.max() - share.index.min()) / BINS / 8
        steps = table["step"] + 2 * apart * number

        def draw(axis: Axes, name: str, shift: float, table=table, steps=steps, colour=colour, **style) -> None:
            bars = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
            axis.errorbar(steps + shift, table[name], bars, color=colour, markersize=4.5, linewidth=1, **style)

        marker = "o^Dv"[number % 4]
        draw(right, "with", -apart, fmt=marker, label=f"reflects{whose}")
        draw(right, "without", apart, fmt=marker, markerfacecolor="white", label=f"does not{whose}")
        draw(gain, "gain", 0, fmt=marker)
    gain.axhline(0, color="black", linewidth=0.8)
    often.set(title="How many reflect", ylabel="share of completions", ylim=(-0.02, 1.02))
    right.set(title="How many are right", ylabel="accuracy, 95 % interval", ylim=(-0.02, 1.02))
    gain.set(title="Within a prompt: reflecting − not", ylabel="difference in accuracy, 95 % interval")
    for axis in (often, right, gain):
        axis.set_xlabel("optimizer step")
    handles, labels = right.get_legend_handles_labels()
    if len(runs) > 1:
        extra = often.get_legend_handles_labels()
        handles, labels = extra[0] + handles, extra[1] + labels
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


FIGURES = {"reward": draw_reward, "case": draw_case, "word_distribution": draw_words, "aha": draw_aha}
MISSING = {
    "case": "no prompt came twice: eval_strategy asks the same held-out ones again and again",
    "word_distribution": "no completions with words in their reasoning: log_completions keeps them",
    "aha": "no completions: log_completions keeps them",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    parser.add_argument(
        "--output", metavar="DIR", help="default: RUN/figures; for several runs, a folder figures beside the first"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    paths = [Path(run) for run in options.runs]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = options.runs
    try:
        runs = [read_run(path, name) for path, name in zip(options.runs, names, strict=True)]
    except NothingToDraw as error:
        say(str(error))
        raise SystemExit(2) from error
    output = Path(options.output or (paths[0] / "figures" if len(paths) == 1 else paths[0].parent / "figures"))
    output.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(runs)
            if figure is None:
                say(f"{name}.png is not drawn: {MISSING[name]}")
                continue
            figure.savefig(output / f"{name}.png")
            pyplot.close(figure)
            print(output / f"{name}.png")


if __name__ == "__main__":
    main()
