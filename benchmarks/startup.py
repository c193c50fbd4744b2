"""Time to `--help`, to a checked plan and to the first step, against `trl grpo` with an equal recipe, in turn.

python -m r1zero.toy; python benchmarks/startup.py
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[0] = str(Path(__file__).parent)

import step  # noqa: E402  (also puts the repository on the path)

from r1zero.arguments import make_parser  # noqa: E402

ROUNDS = 3
CONFIG = "configs/toy.yaml"


def until(command: list[str], pattern: str | None) -> float:
    """Seconds until a command's output holds a text, or until its end."""
    variables = {**os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if pattern and pattern in line:
            seconds = time.perf_counter() - started
            os.killpg(process.pid, signal.SIGKILL)  # a launcher alone would leave its training behind
            process.communicate()
            return seconds
    if process.wait() or pattern:
        sys.exit(f"{' '.join(command)}:\n{''.join(said)[-2000:]}")
    return time.perf_counter() - started


def main() -> None:
    request = make_parser().read(["--config", CONFIG])
    with tempfile.TemporaryDirectory() as scratch:
        run, data = Path(scratch, "run"), Path(scratch, "data")
        data.mkdir()
        prompts, _ = data.to_training_set(data.load(request.dataset_name), request.prompt_style)
        prompts.to_json(data / "train.jsonl")
        alone = ["--output_dir", str(run), "--report_to", "none", "--eval_on_start", "false"]
        measures = {
            "rl_grpo.py --help": (["python", "rl_grpo.py", "--help"], None),
            "trl grpo --help": (["trl", "grpo", "--help"], None),
            "rl_grpo.py --preflight": (["python", "rl_grpo.py", "--config", CONFIG, *alone, "--preflight"], None),
            "rl_grpo.py, first step": (["python", "rl_grpo.py", "--config", CONFIG, *alone], " 1/70 "),
            "trl grpo, first step": (step.trl_command(request, data, 70, run, 1), "'step_time'"),
        }
        times: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(ROUNDS):
            for name, (command, pattern) in measures.items():
                times[name].append(until(command, pattern))
                shutil.rmtree(run, ignore_errors=True)
    for name, values in times.items():
        print(f"  {name:24} {statistics.median(values):6.1f} s  [{min(values):.1f}–{max(values):.1f}]")


if __name__ == "__main__":
    main()
