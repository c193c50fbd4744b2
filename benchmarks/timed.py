"""rl_grpo.py with a clock on its parts: what `step.py` starts. Writes `timing.json` into the run's directory.

    accelerate launch … benchmarks/timed.py --config configs/toy.yaml …

A step is split into generation, rewards, log-probabilities (without gradient), forward and backward pass, optimizer,
and what is left; on a GPU each part waits for the card. The clock itself costs a few microseconds a part.
"""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainerCallback
from trl.extras import profiling

sys.path[0] = str(Path(__file__).parent.parent)

import rl_grpo  # noqa: E402

PARTS = {
    "transformers.generate": "generation",
    "transformers.generate_batch": "generation",
    "vLLM.generate": "generation",
    "sync_weights": "weights to vLLM",
    "_calculate_rewards": "rewards",
    "_get_per_token_logps_and_entropies": "log-probabilities",
    "compute_loss": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
}


class Clock(TrainerCallback):
    """Seconds by part, a dictionary a step."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)
        self.inside: list[float] = []

    def part(self, name: str, seconds: float) -> None:
        self.now[name] += seconds

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize()
        self.began = time.perf_counter()
        self.now = defaultdict(float)

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.steps.append({**self.now, "step": time.perf_counter() - self.began})

    def on_train_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        result = {
            "steps": self.steps,
            "tokens": state.num_input_tokens_seen / max(1, state.global_step),
            "peak_bytes": peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "threads": torch.get_num_threads(),
        }
        Path(args.output_dir, "timing.json").write_text(json.dumps(result))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function, name: str):
    def run(*args, **kwargs):
        synchronize()
        started = time.perf_counter()
        result = function(*args, **kwargs)
        synchronize()
        clock.part(name, time.perf_counter() - started)
        return result

    return run


clock = Clock()
Accelerator.backward = timed(Accelerator.backward, "backward")
AcceleratedOptimizer.step = timed(AcceleratedOptimizer.step, "optimizer")
enter = profiling.ProfilingContext.__enter__


def enter_synchronized(self):
    synchronize()
    return enter(self)


def log_part(self, duration: float) -> None:
    synchronize()
    name = self.name.rpartition("Trainer.")[2]
    if name in PARTS:
        clock.part(PARTS[name], time.perf_counter() - self._start_time)


profiling.ProfilingContext.__enter__ = enter_synchronized
profiling.ProfilingContext._log_metrics = log_part

build = rl_grpo.Trainer.__init__


def build_with_clock(self, *args, **kwargs):
    build(self, *args, **kwargs)
    self.add_callback(clock)


rl_grpo.Trainer.__init__ = build_with_clock

if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    rl_grpo.main()
