"""Draw figures of a run, also while it is training, from the files in its directory.

    python plots.py outputs/toy-1 outputs/toy-2 --output figures     # one run, or several in the same figures

docs/evaluation.md explains the figures. Exit codes: 0 done, 2 there is nothing to draw.
"""

import sys
import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import pandas
from matplotlib import cycler, pyplot
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Patch, Rectangle

from r1zero import runs as stats
from rewards import PHRASES, REFLECTION_PHRASES, REWARDS

# The palette of Okabe and Ito, for colour-blind readers. Line styles and markers differ as well, for greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HIGHLIGHT = {"facecolor": "#F0E442", "edgecolor": "none", "pad": 1}
WIDTH = 9.0  # inches. A README shows it about 830 pixels wide, so that 8 points are 10 pixels
STYLE = {
    "font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS), "grid.color": "#e4e4e4", "legend.frameon": False,
    "figure.constrained_layout.use": True, "savefig.dpi": 200,
}  # fmt: skip
# case.png is a grid of cells, one per character. A cell is 13 pixels wide, so that no rounding adds up along a line.
CELL, LINE = 13 / STYLE["savefig.dpi"], 0.165  # width and height in inches
MONOSPACE = {"family": "DejaVu Sans Mono", "size": CELL * 72 / 0.602, "parse_math": False}  # 0.602: width by size
TAG, NOTE = {"weight": "bold", "color": COLOURS[0]}, {"color": "#666666"}
KINDS = {"phrase": {"weight": "bold", "bbox": HIGHLIGHT}, "tag": TAG, "note": NOTE, None: {}}


def say(line: str) -> None:
    print(f"plots.py: {line}", file=sys.stderr)


def draw_curve(axis: pyplot.Axes, values: pandas.Series, number: int, label: str):
    """Draw a run's values by step, thin, and their moving average, thick. Returns the thick line."""
    window = len(values) // 14 | 1  # an odd number, for as many steps before as after
    label += f"; thick: mean of {window} steps" if window > 1 else ""
    axis.plot(values.index, values, color=f"C{number}", linewidth=0.7, alpha=0.4)
    smooth = values.rolling(window, center=True, min_periods=1).mean()
    style = {"color": f"C{number}", "linewidth": 1.7, "clip_on": False, "zorder": 3}  # the frame must not hide zeros
    return axis.plot(values.index, smooth, ("-", "--", "-.", ":")[number % 4], label=label, **style)[0]


def draw_reward(runs: list[stats.Run]) -> pyplot.Figure:
    """Each reward, completion length, entropy, and the share of groups with equal rewards, by step."""
    mean = "mean of completions"
    panels = {
        "reward": ("reward (weighted sum)", mean),
        **{f"rewards/{name}/mean": (f"{name} reward", mean) for run in runs for name in run.reward_names},
        "completions/mean_length": ("completion length", "tokens, mean"),
        "entropy": ("entropy", "nats per token, mean"),
        "frac_reward_zero_std": ("groups with equal rewards", "share of groups"),
    }
    panels = {key: labels for key, labels in panels.items() if any(key in run.metrics for run in runs)}
    cells = [*panels, *"." * (-len(panels) % 4)]  # four per row; a dot leaves a cell empty
    figure = pyplot.figure(figsize=(WIDTH, 2.1 * len(cells) / 4 + 0.4))
    axes = figure.subplot_mosaic([cells[start : start + 4] for start in range(0, len(cells), 4)])
    for number, run in enumerate(runs):
        for key, values in run.metrics.set_index("step").filter(axes).astype(float).items():
            draw_curve(axes[key], values, number, run.name)
        if (aha := stats.first_aha(run)) is not None:
            label = f"{run.name}, step {aha}: over {stats.AHA_SHARE * 100:.0f} % of completions reflect"
            for axis in axes.values():
                axis.axvline(aha, label=label, color=f"C{number}", linestyle=(0, (1, 1.5)), linewidth=1.2)
    for key, (title, unit) in panels.items():
        axes[key].set(title=title, ylabel=unit, xlabel="optimizer step", ylim=(min(0, axes[key].dataLim.y0), None))
    figure.legend(*axes["reward"].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def drawable(text: str) -> str:
    """The text with a box in place of each character that the fonts lack or that cannot be seen."""
    known = get_font(findfont("DejaVu Sans Mono")).get_charmap()  # DejaVu Sans has more
    return "".join(letter if letter.isprintable() and ord(letter) in known else "□" for letter in text)


def wrap(text: str, width: int, most_lines: int = 30) -> list[str]:
    """The text as drawable lines of at most `width` characters. A note replaces the middle of a very long text."""
    lines = []
    for line in text.strip().splitlines():
        lines += textwrap.wrap(drawable(line.expandtabs(4)), width) or [""]
    if len(lines) > most_lines:
        half = most_lines // 2
        lines[half:-half] = [f"[… {len(lines) - 2 * half} lines …]"]
    return lines


def draw_case(runs: list[stats.Run]) -> pyplot.Figure:
    """For each run a prompt, and below it what was written to it at up to three steps, side by side."""
    if not (cases := [(run, *case) for run in runs if (case := stats.pick_case(run))]):
        raise stats.NothingToDraw("no prompt came up twice; eval_strategy repeats the held-out prompts")
    figure = pyplot.figure(layout="none")
    axis = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=[], yticks=[])

    def write(x: float, y: float, width: int, text: str, kind: str | None = None) -> float:
        """Write wrapped text with its upper left corner at (x, y), and return the y below it. Units: cells."""
        text, row, column = "\n".join(wrap(text, width)), y, x
        for piece, style in PHRASES.highlight(text) if kind == "completion" else [(text, kind)]:
            for part in piece.splitlines(keepends=True):
                axis.text(column, row + 0.75, part.rstrip("\n"), **MONOSPACE, **KINDS[style])
                row, column = (row + 1, x) if part.endswith("\n") else (row, column + len(part))
        return row + 1

    page, y = int(WIDTH / CELL), 1.0
    for run, how, shown in cases:
        y = write(2, y, page - 4, f"{run.name}: {how}", "note") + 0.4
        answer = f" (answer: {shown['gold_answer'].iloc[0]})" if "gold_answer" in shown else ""
        top = write(2, y, page - 4, shown["prompt"].iloc[0] + answer) + 0.5
        width = (page - 2) // len(shown) - 2
        columns = range(2, 2 + len(shown) * (width + 2), width + 2)
        texts = zip(columns, shown["completion"], strict=True)
        middle = max(write(x + 1, top + 1.8, width - 2, text, "completion") for x, text in texts) + 0.4
        scores = shown.reindex(columns=run.reward_names).astype(float)
        scores["sum"] = scores.sum(axis=1)
        tables = [row.dropna().to_string(float_format="{:.2f}".format) for _, row in scores.iterrows()]
        bottom = max(write(x + 1, middle + 0.4, width - 2, text) for x, text in zip(columns, tables, strict=True)) + 0.4
        for x, step in zip(columns, shown["step"], strict=True):
            write(x + 1, top + 0.4, width - 2, f"step {step}", "note")
            axis.add_patch(Rectangle((x, top), width, bottom - top, fill=False, color="#999999"))
            axis.plot([x, x + width], [middle, middle], color="#cccccc", linewidth=0.8)
        y = bottom + 1.5
    figure.set_size_inches(WIDTH, (y - 0.5) * LINE)
    axis.set(xlim=(0, WIDTH / CELL), ylim=(y - 0.5, 0))
    return figure


def draw_words(runs: list[stats.Run]) -> pyplot.Figure:
    """One row per run: how often words, pairs and triples occur in the first and in the last steps."""
    runs = [run for run in runs if len(run.completions)]
    titles = ("words", "pairs of words", "triples of words")
    tables = [[stats.ngram_rates(run, n, REFLECTION_PHRASES) for n in (1, 2, 3)] for run in runs]
    if not any(len(table) for row in tables for table in row):
        raise stats.NothingToDraw("no completions with words in their reasoning; log_completions keeps completions")
    heights = [0.19 * max(map(len, row)) + 1.1 for row in tables]
    figure = pyplot.figure(figsize=(WIDTH, sum(heights) + 0.3))
    parts = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)
    for run, row, part in zip(runs, tables, parts.flat, strict=True):
        first, last = (f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}" for steps in stats.edges(run))
        part.suptitle(f"{run.name}: steps {first} (open circles) and {last} (filled)", fontsize=9)
        for title, table, axis in zip(titles, row, part.subplots(1, 3), strict=True):
            places = range(len(table))
            axis.hlines(places, table["first"], table["last"], color="#bbbbbb", linewidth=2, zorder=1)
            style = {"color": "C0", "markersize": 5, "clip_on": table.empty}  # else an empty line breaks the layout
            axis.plot(table["first"], places, "o", label="first steps", markerfacecolor="white", **style)
            axis.plot(table["last"], places, "o", label="last steps", **style)
            axis.set_yticks(places, [drawable(name if len(name) <= 22 else f"{name[:21]}…") for name in table.index])
            for label in pandas.Series(axis.get_yticklabels(), table.index).filter(REFLECTION_PHRASES):
                label.set(weight="bold", bbox=HIGHLIGHT)
            axis.set(title=title, xlabel="times per completion", xlim=(0, None), ylim=(max(len(table), 1) - 0.4, -0.6))
    paid = Patch(facecolor=HIGHLIGHT["facecolor"], label="phrases that the reflection reward pays for")
    figure.legend(handles=[*axis.get_legend_handles_labels()[0], paid], loc="outside lower center", ncols=3)
    return figure


def draw_aha(runs: list[stats.Run]) -> pyplot.Figure:
    """The share of completions that reflect, accuracy with and without, and the difference within a prompt."""
    if not (runs := [run for run in runs if len(run.completions)]):
        raise stats.NothingToDraw("no completions; log_completions keeps them")
    figure, (often, right, gain) = pyplot.subplots(1, 3, figsize=(WIDTH, 3.1), subplot_kw={"xlabel": "optimizer step"})
    for number, run in enumerate(runs):
        share = stats.share_that_reflects(run)
        draw_curve(often, share, number, run.name)
        table = stats.does_it_help(run)
        shift = (share.index.max() - share.index.min()) / stats.STRETCHES / 8  # so that the intervals do not overlap
        points = (
            (right, "with", 2 * number - 1, {"label": f"{run.name}: reflects"}),
            (right, "without", 2 * number + 1, {"label": f"{run.name}: does not", "markerfacecolor": "white"}),
            (gain, "gain", 2 * number, {}),
        )
        for axis, name, shifts, style in points if len(table) else ():
            bars = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
            style |= {"color": f"C{number}", "fmt": "o^Dv"[number % 4], "markersize": 4.5, "linewidth": 1}
            axis.errorbar(table["step"] + shifts * shift, table[name], bars, **style)
    gain.axhline(0, color="black", linewidth=0.8)
    often.set(title="How many reflect", ylabel="share of completions", ylim=(-0.02, 1.02))
    right.set(title="How many are right", ylabel="accuracy, 95 % interval", ylim=(-0.02, 1.02))
    gain.set(title="Within a prompt: reflecting − not", ylabel="difference in accuracy, 95 % interval")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


FIGURES = {"reward": draw_reward, "case": draw_case, "word_distribution": draw_words, "aha": draw_aha}


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    parser.add_argument("--output", metavar="DIR", help="default: figures in RUN, or next to the first of several runs")
    return parser


def main(argv: list[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    paths = [Path(run) for run in options.runs]
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else options.runs
    try:
        runs = [stats.read_run(path, name, PHRASES, REWARDS, say) for path, name in zip(paths, names, strict=True)]
    except stats.NothingToDraw as error:
        say(str(error))
        raise SystemExit(2) from error
    output = Path(options.output or (paths[0] if len(paths) == 1 else paths[0].parent) / "figures")
    output.mkdir(parents=True, exist_ok=True)
    pyplot.switch_backend("agg")  # draws into files; needs no display
    with pyplot.rc_context(STYLE):
        for name, draw in FIGURES.items():
            try:
                draw(runs).savefig(output / f"{name}.png")
                print(output / f"{name}.png")
            except stats.NothingToDraw as error:
                say(f"{name}.png is not drawn: {error}")
            pyplot.close("all")


if __name__ == "__main__":
    main()
