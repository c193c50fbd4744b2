"""Read a training run's directory, and compute the statistics that its figures show."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy
import pandas

from r1zero import intervals
from r1zero.answers import text
from r1zero.phrases import Phrases

AHA_SHARE = 0.1  # share of reflecting completions that marks the "aha" step
STRETCHES = 10  # into which `does_it_help` divides the steps
EDGE = 0.1  # share of the steps that are its first or its last ones
MOST_NGRAMS = 12
LEAST_RATE = 0.01  # n-grams with fewer occurrences per completion are left out


class NothingToDraw(ValueError):
    """There is nothing for a figure, or for any. The message is one line that says why."""


@dataclass
class Run:
    """What a run's directory holds so far."""

    name: str
    metrics: pandas.DataFrame  # one row per logged step: `step` and TRL's metrics
    completions: (
        pandas.DataFrame
    )  # one row each: `step`, `prompt`, `completion` (text), `reflects` (has a phrase), rewards
    validation: pandas.DataFrame  # the same for the held-out prompts, at each validation
    reward_names: list[str]  # the rewards in `metrics`, in `reward_order`; others last


def read_run(directory: Path, name: str, phrases: Phrases, reward_order: Iterable[str], warn: Callable) -> Run:
    """Read the directory of a run by `rl_grpo.py` or by another script with TRL's trainer, finished or not.

    `warn` gets a line for each file that cannot be read. Raises NothingToDraw if there is no run, or no metrics yet.
    """
    if not directory.is_dir():
        raise NothingToDraw(f"there is no run {directory}")
    # Without rl_grpo.py, only checkpoints hold the metrics. The newest checkpoint has the largest file.
    checkpoints = sorted(directory.glob("checkpoint-*/trainer_state.json"), key=lambda file: -file.stat().st_size)
    for file in [*directory.glob("trainer_state.json"), *checkpoints]:
        try:
            history = json.loads(file.read_text())["log_history"]
            break
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            warn(f"{file} is incomplete or not a trainer's state; skipped")
    else:
        raise NothingToDraw(f"{directory} has no readable trainer_state.json: not a run, or no step is logged yet")
    if not (logged := [entry for entry in history if "reward" in entry]):
        raise NothingToDraw(f"{directory} has not logged a GRPO step yet")
    metrics = pandas.DataFrame(logged).drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
    last = metrics["step"].max()
    tables = [read_tables(directory / folder, last, phrases, warn) for folder in ("completions", "validation")]
    rewards = [key.removeprefix("rewards/").removesuffix("/mean") for key in metrics.filter(regex="^rewards/.*/mean$")]
    return Run(name, metrics, *tables, reward_names=sorted(rewards, key=[*reward_order, *rewards].index))


def read_tables(folder: Path, last_step: int, phrases: Phrases, warn: Callable) -> pandas.DataFrame:
    """The completions in a folder's parquet files up to `last_step`. A stopped run will repeat the later steps."""
    tables = []
    for file in sorted(folder.glob("*.parquet")):
        try:
            table = pandas.read_parquet(file)
            table = table[table["step"] <= last_step]
            table["prompt"] = [p if isinstance(p, str) else p[-1]["content"] for p in table["prompt"]]
            table["completion"] = [text(completion) for completion in table["completion"]]
            table["reflects"] = [bool(phrases.find(completion)) for completion in table["completion"]]
            tables.append(table)
        except (OSError, ValueError, KeyError):
            warn(f"{file} is incomplete or not a table of completions; skipped")
    empty = pandas.DataFrame(columns=["step", "prompt", "completion", "reflects"])
    return pandas.concat(tables, ignore_index=True) if tables else empty


def share_that_reflects(run: Run) -> pandas.Series:
    """By step, the share of completions with at least one phrase."""
    return run.completions.groupby("step")["reflects"].mean()


def first_aha(run: Run) -> int | None:
    """The first step at which more than `AHA_SHARE` of the completions reflect."""
    return share_that_reflects(run)[lambda share: share > AHA_SHARE].first_valid_index()


def count_ngrams(completions: Iterable[str], n: int) -> Counter:
    """How often each sequence of n words is in the reasoning, in lower case; numbers and tags end a sequence."""
    counts = Counter()
    for completion in completions:
        reasoning = re.split(r"</think>|<answer>", completion.lower(), maxsplit=1)[0].replace("<think>", "")
        for stretch in re.split(r"[\d<]", reasoning):
            words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", stretch)
            counts.update(" ".join(words[start : start + n]) for start in range(len(words) - n + 1))
    return counts


def edges(run: Run) -> tuple[list[int], list[int]]:
    """The first and the last steps that have completions."""
    steps = sorted(run.completions["step"].unique())
    count = max(1, round(EDGE * len(steps)))
    return steps[:count], steps[-count:]


def ngram_rates(run: Run, n: int, phrases: Collection[str]) -> pandas.DataFrame:
    """Occurrences per completion in the `first` and `last` steps. Rows: the most frequent n-grams, and `phrases`."""
    rates = {}
    for end, steps in zip(("first", "last"), edges(run), strict=True):
        completions = run.completions.loc[run.completions["step"].isin(steps), "completion"]
        rates[end] = pandas.Series(count_ngrams(completions, n), dtype=float) / len(completions)
    table = pandas.DataFrame(rates).fillna(0.0).rename_axis("ngram").assign(most=lambda rates: rates.max(axis=1))
    table = table[table["most"] >= LEAST_RATE].sort_values(["most", "ngram"], ascending=[False, True])
    shown = table.index.isin([*table.index[:MOST_NGRAMS], *phrases])
    return table.loc[shown, ["first", "last"]]


def does_it_help(run: Run) -> pandas.DataFrame:
    """Accuracy of the completions that reflect and of those that do not, over at most `STRETCHES` stretches of steps.

    `gain` is their mean difference in the groups (a prompt at a step) with both: the fairer comparison, since those
    that reflect may have met easier prompts. Returns a row per stretch: `step` (its middle), `with`, `without`, `gain`,
    each also with `_low` and `_high` (95 % interval; completions of a group are alike). NaN if there are too few.
    """
    columns = ["step", *(name + end for name in ("with", "without", "gain") for end in ("", "_low", "_high"))]
    table = run.completions.reindex(columns=["step", "prompt", "reflects", "accuracy"]).dropna(subset="accuracy")
    rows = []
    for steps in filter(len, numpy.array_split(sorted(table["step"].unique()), STRETCHES)):
        groups = table[table["step"].isin(steps)].groupby(["step", "prompt", "reflects"])["accuracy"]
        counts = groups.agg(["sum", "count"]).unstack(fill_value=0)
        correct, trials = (counts[name].reindex(columns=[True, False], fill_value=0) for name in ("sum", "count"))
        row = [(steps[0] + steps[-1]) / 2]
        shares = correct.sum() / trials.sum()
        for kind in (True, False):
            row += [shares[kind], *intervals.of_share_in_groups(list(correct[kind]), list(trials[kind]))]
        gains = list((correct[True] / trials[True] - correct[False] / trials[False]).dropna())  # groups with both
        gain = [numpy.mean(gains), *numpy.clip(intervals.of_mean(gains), -1, 1)] if len(gains) > 1 else [numpy.nan] * 3
        rows.append(row + gain)
    return pandas.DataFrame(rows, columns=columns)


def pick_case(run: Run) -> tuple[str, pandas.DataFrame] | None:
    """Pick a prompt. Returns how it was picked, and the rows with what was written to it early, midway and at the end.

    The first held-out prompt with a wrong answer at first and a right one with a reflection at the end; else the first
    that became right; else the first. Without a validation, the training prompt that came up again after most steps.
    """
    table = (run.validation if len(run.validation) else run.completions).drop_duplicates(["step", "prompt"])
    if len(run.validation):
        first, last = (table[table["step"] == step].set_index("prompt") for step in table["step"].agg(["min", "max"]))
        kinds = {"": pandas.Series(True, first.index)}
        if "accuracy" in table:
            solved = " that were wrong at first and right at the end"
            kinds[solved] = (first["accuracy"] == 0) & (last["accuracy"].reindex(first.index) == 1)
            kinds[f"{solved}, with a reflection"] = kinds[solved] & last["reflects"].reindex(first.index).eq(True)
        kind, fits = [(kind, fits) for kind, fits in kinds.items() if fits.any()][-1]
        prompt = fits.idxmax()
        how = f"the first of {fits.sum()} held-out problems{kind}" + (f" (of {len(fits)})" if kind else "")
    else:
        apart = table.groupby("prompt")["step"].agg(lambda steps: steps.max() - steps.min())
        if not apart.any():
            return None
        prompt, how = apart.idxmax(), "a training problem that came up again"
    shown = table[table["prompt"] == prompt].sort_values("step")
    middle = (shown["step"] - (shown["step"].min() + shown["step"].max()) / 2).abs().argmin()
    return how, shown.iloc[sorted({0, middle, len(shown) - 1})]
