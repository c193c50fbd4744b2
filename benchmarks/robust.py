"""Train the toy as it is and with other settings, over five seeds, and compare them on the test split.

    python benchmarks/robust.py                       # two CPU cores, about twenty minutes; finished runs are kept
    python benchmarks/robust.py --settings bf16 --seeds 1 2 3

The robust settings are the four of `configs/qwen2.5-1.5b-gsm8k-robust.yaml` about rewards and truncation. The table
gives each seed and the mean over seeds with its 95 % interval; the last line is the difference, paired by seed. A run
has collapsed if its accuracy, as a mean of five steps, ever fell by more than a fifth from its best so far.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import scipy.stats
import yaml

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import rewards  # noqa: E402

ROBUST = ROOT / "configs" / "qwen2.5-1.5b-gsm8k-robust.yaml"
KEYS = ("reward_funcs", "multi_objective_aggregation", "reward_weights", "mask_truncated_completions")
MEASURES = ("pass@1", "greedy", "reflects", "tokens", "truncated", "collapsed")
WINDOW, FALL = 5, 0.2


def robust_settings() -> list[str]:
    """The robust recipe's settings as arguments of rl_grpo.py."""
    recipe = yaml.safe_load(ROBUST.read_text())
    arguments = []
    for key in KEYS:
        values = recipe[key] if isinstance(recipe[key], list) else [recipe[key]]
        arguments += [f"--{key}", *map(str, values)]
    return arguments


def collapsed(run: Path) -> bool:
    """Whether a run's accuracy ever fell by more than `FALL` of its best so far, in means of `WINDOW` steps."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    values = [entry["rewards/accuracy/mean"] for entry in history if "rewards/accuracy/mean" in entry]
    means = [statistics.fmean(values[end - WINDOW : end]) for end in range(WINDOW, len(values) + 1)]
    return any(mean < (1 - FALL) * max(means[: index + 1]) for index, mean in enumerate(means))


def evaluate(run: Path, *how: str) -> dict[str, float]:
    subprocess.run([sys.executable, "eval.py", str(run), *how], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((ROOT / run / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (ROOT / run / "evaluation.jsonl").read_text().splitlines()]
    return {
        "accuracy": result["accuracy"]["value"], "tokens": result["mean_tokens"],
        "truncated": result["truncated"]["value"],
        "reflects": statistics.fmean(bool(rewards.PHRASES.find(row["completion"])) for row in rows),
    }  # fmt: skip


def measure(run: Path) -> dict[str, float]:
    greedy = evaluate(run)
    sampled = evaluate(run, "--num_samples", "8", "--temperature", "1")
    return {
        "pass@1": sampled["accuracy"], "greedy": greedy["accuracy"], "reflects": sampled["reflects"],
        "tokens": sampled["tokens"], "truncated": sampled["truncated"], "collapsed": float(collapsed(ROOT / run)),
    }  # fmt: skip


def mean_and_interval(values: list[float]) -> str:
    """Student's t over the seeds."""
    mean = statistics.fmean(values)
    if len(set(values)) == 1:
        return f"{mean:.3f}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default: 1 to 5")
    parser.add_argument("--output_dir", default="outputs", help="folder of the runs; default: %(default)s")
    parser.add_argument("--settings", choices=["robust", "bf16"], default="robust", help="default: %(default)s")
    options = parser.parse_args()

    other = {"robust": robust_settings(), "bf16": ["--bf16", "true"]}[options.settings]
    results: dict[str, list[dict]] = {"toy": [], options.settings: []}
    for seed in options.seeds:
        for name, arguments in (("toy", []), (options.settings, other)):
            run = Path(options.output_dir, f"{name}-{seed}")
            command = ["bash", "rl_grpo.sh", "--seed", str(seed), "--output_dir", str(run), *arguments]
            subprocess.run(
                command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                env={**os.environ, "CONFIG": "configs/toy.yaml", "EVALUATE": "0"},
            )  # fmt: skip
            results[name].append(measure(run))

    print("\n| settings | seed | " + " | ".join(MEASURES) + " |")
    print("|---" * (2 + len(MEASURES)) + "|")
    for name, found in results.items():
        for seed, row in zip(options.seeds, found, strict=True):
            print(f"| {name} | {seed} | " + " | ".join(f"{row[measure]:.3f}" for measure in MEASURES) + " |")
    for name, found in results.items():
        cells = [mean_and_interval([row[measure] for row in found]) for measure in MEASURES]
        print(f"| {name} | all | " + " | ".join(cells) + " |")
    pairs = list(zip(*results.values(), strict=True))
    cells = [mean_and_interval([other[measure] - toy[measure] for toy, other in pairs]) for measure in MEASURES]
    print(f"| {options.settings} − toy | by seed | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
