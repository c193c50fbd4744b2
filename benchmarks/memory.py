"""The estimate of the plan against the measured peak of a process, by part.

    python benchmarks/memory.py --real FOLDER          # CPU: about twenty minutes; FOLDER holds a Qwen2.5-0.5B model
    python benchmarks/memory.py --models toy 0.5b      # without real weights
    python benchmarks/memory.py --only lora            # rows with this word in their name

One optimizer step each, in a process of its own. On a CPU the peak is the resident set size, on a GPU
`torch.cuda.max_memory_allocated`. `0.5b` has the shape of Qwen2.5-0.5B and random weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import rl_grpo  # noqa: E402
from r1zero import memory  # noqa: E402
from r1zero.trainer import Trainer  # noqa: E402

GIB = 2**30
COMMON = {
    "dataset_name": "outputs/toy-base/data", "prompt_style": "chat", "validation_size": 0, "max_steps": 1,
    "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "log_completions": "false",
    "reward_funcs": ["accuracy", "length"],
}  # fmt: skip
LORA = {"use_peft": "true", "lora_r": 16, "lora_target_modules": "all-linear", "learning_rate": "1e-5"}
BATCH = {"prompts_per_step": 2, "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 64}
SMALL = {**BATCH, "per_device_train_batch_size": 2}
RECOMPUTE = {"activation_checkpointing": "true"}
KEEP = {"activation_checkpointing": "false"}
ROWS = {
    "toy, full, fp32": ("toy", {"bf16": "false", **KEEP, **BATCH, "prompt_style": "question"}),
    "0.5b, lora, fp32": ("0.5b", {"bf16": "false", **KEEP, **LORA, **BATCH}),
    "0.5b, lora, fp32, checkpointing": ("0.5b", {"bf16": "false", **RECOMPUTE, **LORA, **BATCH}),
    "0.5b, lora, fp32, micro-batch 2": ("0.5b", {"bf16": "false", **KEEP, **LORA, **SMALL}),
    "0.5b, lora, bf16": ("0.5b", {"bf16": "true", **KEEP, **LORA, **SMALL}),
    "0.5b, full, fp32, checkpointing": ("0.5b", {"bf16": "false", **RECOMPUTE, **BATCH}),
    "0.5b, full, bf16, micro-batch 2": ("0.5b", {"bf16": "true", **KEEP, **SMALL}),
    "real, lora, fp32": ("real", {"bf16": "false", **KEEP, **LORA, **BATCH}),
    "real, lora, fp32, micro-batch 2": ("real", {"bf16": "false", **KEEP, **LORA, **SMALL}),
    "real, lora, fp32, checkpointing": ("real", {"bf16": "false", **RECOMPUTE, **LORA, **BATCH}),
}


def measure(arguments: list[str], result: Path) -> None:
    """Train in this process; write the estimate and the peak of each phase, in bytes."""
    peaks: dict[str, int] = {}
    phase = "load"
    own = psutil.Process()
    on_gpu = torch.cuda.is_available()
    done = threading.Event()

    def note() -> None:
        used = torch.cuda.max_memory_allocated() if on_gpu else own.memory_info().rss
        peaks[phase] = max(peaks.get(phase, 0), used)

    def watch() -> None:
        while not done.wait(0.02):
            note()

    def during(name: str, function):
        def run(*args, **kwargs):
            nonlocal phase
            before, phase = phase, name
            try:
                return function(*args, **kwargs)
            finally:
                note()
                phase = before
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()

        return run

    estimates = {}
    estimate = memory.estimate
    memory.estimate = lambda *args, **kwargs: estimates.update(estimate(*args, **kwargs)) or dict(estimates)
    Trainer._generate_single_turn = during("generation", Trainer._generate_single_turn)
    Trainer.training_step = during("forward and backward", Trainer.training_step)
    threading.Thread(target=watch, daemon=True).start()
    rl_grpo.main(arguments)
    done.set()
    result.write_text(json.dumps({"estimate": estimates, "measured": peaks}))


def row(name: str, folder: str, settings: dict) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch, "result.json")
        command = [sys.executable, __file__, "--measure", str(result), "--model_name_or_path", folder]
        for key, value in {**COMMON, **settings, "output_dir": Path(scratch, "run")}.items():
            command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print(f"| {name} | failed: {done.stderr.strip().splitlines()[-1]} |", flush=True)
            return
        content = json.loads(result.read_text())
    peak, estimate = max(content["measured"].values()), content["estimate"].pop("peak")
    parts = ", ".join(f"{part} {value / GIB:.2f}" for part, value in content["estimate"].items() if value > 0.005 * GIB)
    phases = ", ".join(f"{part} {value / GIB:.2f}" for part, value in content["measured"].items())
    ratio = estimate / peak
    print(f"| {name} | {estimate / GIB:.2f} | {peak / GIB:.2f} | {ratio:.2f} | {parts} | {phases} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["toy", "0.5b"], default=["toy", "0.5b"])
    parser.add_argument("--real", help="a folder with a Qwen2.5-0.5B model")
    parser.add_argument("--only", default="", help="rows with this word in their name")
    options = parser.parse_args()
    import step

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    print(f"GiB on {device}\n\n| run | estimate | measured | ratio | estimate by part | peak by phase |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"toy": "outputs/toy-base", "real": options.real}
        for name, (model, settings) in ROWS.items():
            if options.only not in name or model not in (*options.models, *(["real"] if options.real else [])):
                continue
            if model == "0.5b" and model not in folders:
                rows = [json.loads(line)["question"] for line in (ROOT / COMMON["dataset_name"] / "train.jsonl").open()]
                folders[model] = str(step.make_shape(step.SHAPES[model], rows[:500], Path(scratch, "shape")))
            row(name, folders[model], settings)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        at = sys.argv.index("--measure")
        measure(sys.argv[at + 2 :], Path(sys.argv[at + 1]))
    else:
        main()
