"""Does it learn the same? The whole toy by `trl grpo` and by ours, the same recipe and seeds, reward by reward.

    python -m r1zero.toy; python benchmarks/learning.py        # two CPU cores, about twenty minutes

The table gives accuracy and reward as means of ten steps, over the seeds with their range, and pass@1 on the test split
before and after. Each side draws its own samples, so equal it cannot be; seeds differ about as much.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).parent)

import step  # noqa: E402  (also puts the repository on the path)

from r1zero.arguments import make_parser  # noqa: E402

CONFIG = "configs/toy.yaml"
STRETCH = 10  # steps
CURVES = ("rewards/accuracy/mean", "rewards/format/mean", "completions/mean_length")


def train_theirs(request, seed: int, data: Path, run: Path) -> dict[str, list[float]]:
    """`trl grpo` to the recipe's last step; its metrics by name."""
    request.seed = seed
    command = step.trl_command(request, data, request.max_steps, run, 1)
    said = step.run_once(command, run.with_suffix(".log"), None)
    return {name: [float(value) for value in re.findall(rf"'{name}': '?([0-9.e+-]+)", said)] for name in CURVES}


def train_ours(seed: int, run: Path) -> dict[str, list[float]]:
    """`rl_grpo.sh`, with nothing but the seed; a run that is there is not run again."""
    command = ["bash", "rl_grpo.sh", "--seed", str(seed), "--output_dir", str(run)]
    variables = {**os.environ, "CONFIG": CONFIG, "EVALUATE": "0"}
    subprocess.run(command, cwd=step.ROOT, env=variables, check=True, stdout=subprocess.DEVNULL)
    history = json.loads((step.ROOT / run / "trainer_state.json").read_text())["log_history"]
    return {name: [entry[name] for entry in history if name in entry] for name in CURVES}


def accuracy(model: Path, data: str) -> float:
    """pass@1 of eight samples at temperature 1 on the test split."""
    how = ["--num_samples", "8", "--temperature", "1", "--dataset_name", data, "--prompt_style", "question",
           "--max_completion_length", "64"]  # fmt: skip
    command = [sys.executable, "eval.py", str(model), *how]
    subprocess.run(command, cwd=step.ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((step.ROOT / model / "evaluation.json").read_text())["accuracy"]["value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--output_dir", default="outputs", help="folder of our runs; default: %(default)s")
    options = parser.parse_args()

    request = make_parser().read(["--config", CONFIG])
    curves: dict[str, list[dict]] = {"trl grpo": [], "ours": []}
    after: dict[str, list[float]] = {"trl grpo": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data")
        data.mkdir()
        prompts, _ = data.to_training_set(
            data.load(request.dataset_name), request.prompt_style, request.validation_size
        )
        prompts.to_json(data / "train.jsonl")
        request.model_name_or_path = str(
            step.declare_ends(request.model_name_or_path, request.prompt_style, Path(scratch, "model"))
        )
        for seed in options.seeds:
            theirs, ours = Path(scratch, f"trl-{seed}"), Path(options.output_dir, f"toy-{seed}")
            curves["ours"].append(train_ours(seed, ours))
            curves["trl grpo"].append(train_theirs(request, seed, data, theirs))
            for who, run in (("ours", ours), ("trl grpo", theirs)):
                after[who].append(accuracy(run, request.dataset_name))

    steps = request.max_steps
    ends = range(STRETCH, steps + 1, STRETCH)
    print(f"\n{CONFIG}, {len(options.seeds)} seeds, means of {STRETCH} steps [lowest–highest seed]\n")
    print("| | " + " | ".join(f"to step {end}" for end in ends) + " |\n" + "|---" * (len(ends) + 1) + "|")
    for name in CURVES:
        for who, runs in curves.items():
            cells = []
            for end in ends:
                means = [statistics.fmean(run[name][end - STRETCH : end]) for run in runs]
                digits = 1 if "length" in name else 3
                cells.append(f"{statistics.fmean(means):.{digits}f} [{min(means):.{digits}f}–{max(means):.{digits}f}]")
            print(f"| {name}, {who} | " + " | ".join(cells) + " |")
    for who, values in after.items():
        print(f"pass@1 after, {who}: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    main()
