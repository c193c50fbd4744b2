"""Compiled decoding with a static cache against uncompiled, of the same prompts and seed: is it the same, and faster?

    python toy.py; python benchmarks/compiled.py        # two CPU cores, three minutes, most of it compilation
    python benchmarks/compiled.py --config configs/qwen2.5-1.5b-gsm8k.yaml        # a GPU

Both make the rollouts of the same few steps with learning rate 0. In fp32 they should agree token for token; in bf16,
where they cannot, in the mean log-probability that the uncompiled model gives to what each has sampled, and in the mean
reward. `--pad_to_multiple_of` keeps the shapes, which are compiled for, the same from step to step.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import CompileConfig

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import rl_grpo  # noqa: E402

STEPS = 4
MODES = ("static cache, uncompiled", "static cache, compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/toy.yaml", help="recipe; default: %(default)s")
    parser.add_argument("others", nargs=argparse.REMAINDER, help="further arguments of rl_grpo.py; last")
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    os.chdir(ROOT)

    rollouts: dict[str, list[dict]] = {}
    generate, score = rl_grpo.Trainer._generate_single_turn, rl_grpo.Trainer._generate_and_score_completions

    def timed_generate(self, *args, **kwargs):
        self.generation_config.disable_compile = mode != MODES[1]
        if mode == MODES[1] and not torch.cuda.is_available():
            self.generation_config.compile_config = CompileConfig(mode="default")
            self.generation_config.compile_config._compile_all_devices = True  # transformers takes only accelerators
        started = time.perf_counter()
        result = generate(self, *args, **kwargs)
        rollouts[mode].append({"seconds": time.perf_counter() - started, "completions": result[0]})
        return result

    def scored(self, inputs):
        batch = score(self, inputs)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].size(1)
        with torch.no_grad():
            log_probs, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, width, batch_size=self.args.per_device_train_batch_size
            )
        kept = batch["completion_mask"].bool()
        rollouts[mode][-1]["log-probability"] = log_probs[kept].mean().item()
        rollouts[mode][-1]["reward"] = self._metrics["train"]["reward"][-1]
        return batch

    rl_grpo.Trainer._generate_single_turn, rl_grpo.Trainer._generate_and_score_completions = timed_generate, scored
    for mode in MODES:
        rollouts[mode] = []
        with tempfile.TemporaryDirectory() as run:
            rl_grpo.main([
                "--config", options.config, "--output_dir", f"{run}/run", "--max_steps", str(STEPS),
                "--learning_rate", "0", "--cache_implementation", "static", "--pad_to_multiple_of", "64",
                "--report_to", "none", "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no",
                "--log_completions", "false", *options.others,
            ])  # fmt: skip

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{options.config}, {device}, {STEPS} steps\n")
    for mode, steps in rollouts.items():
        seconds = [step["seconds"] for step in steps]
        means = [
            f"{name} {statistics.fmean(step[name] for step in steps):.4f}" for name in ("log-probability", "reward")
        ]
        print(
            f"  {mode:26} generation {seconds[0]:6.2f} s at first, then {statistics.median(seconds[1:]):6.2f} s; "
            f"mean {', '.join(means)}"
        )
    pairs = [
        one == other
        for steps in zip(*rollouts.values(), strict=True)
        for one, other in zip(*(step["completions"] for step in steps), strict=True)
    ]
    print(f"  {sum(pairs)} of {len(pairs)} completions are the same, token for token")


if __name__ == "__main__":
    main()
