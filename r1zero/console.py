"""What a run prints: the plan, one line per logging step, a completion now and then, alarms, and a summary."""

import datetime
import logging
import math
import os
import sys
import time
import warnings
from pathlib import Path

import datasets
import transformers
from tqdm.auto import tqdm
from transformers import TrainerCallback

from r1zero import run_directory
from r1zero.alarms import Alarms
from r1zero.answers import text

SAMPLES = 6  # how often a run shows a completion
SUMMARY_STEPS = 5  # logging steps in the first and last means of the summary


def quieten() -> None:
    """Turn off library messages that a reader of a training's output can do nothing about."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are also raised
    transformers.utils.logging.disable_progress_bar()
    # A checkpoint of a model with tied weights holds the head only under the embedding's name.
    logging.getLogger("transformers.trainer").addFilter(
        lambda record: "missing keys in the checkpoint model loaded: ['lm_head.weight']" not in record.getMessage()
    )
    # TRL 1.16 reads an attribute that transformers 5.23 renamed, at every step.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


class RunReport(TrainerCallback):
    """Prints a run's progress and saves its metrics at every logging step.

    It replaces transformers' `ProgressCallback`, which prints TRL's 25 metrics as one dictionary.
    """

    def __init__(self, reward_names: list[str]):
        self.reward_names = reward_names
        self.bar = None
        self.lines = 0
        self.alarms = Alarms(reward_names)
        self.completion = None  # the last one, to show beside an alarm
        self.next_sample = 1
        self.started_at = self.logged_at = self.tokens = self.first_step = self.sample_every = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.started_at = self.logged_at = time.perf_counter()
        self.tokens, self.first_step = state.num_input_tokens_seen, state.global_step
        for entry in state.log_history:  # a resumed run does not repeat its alarms
            if "reward" in entry:
                self.alarms.see(entry)
        self.sample_every = math.ceil(state.max_steps / max(1, state.logging_steps) / SAMPLES)
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True,
            disable=args.disable_tqdm or not sys.stderr.isatty(),  # a log file has the lines
        )  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None or "train_runtime" in logs:
            return
        if "reward" in logs:
            self.say_step(state, logs)
            for alarm in self.alarms.see(logs):
                self.bar.write(f"  warning  {alarm.message}")
                if alarm.show_completion and self.completion is not None:
                    self.bar.write(_framed(f"→ {self.completion}"))
        elif "eval_reward" in logs:
            means = " · ".join(f"{name} {_number(logs[f'eval_rewards/{name}/mean'])}" for name in self.reward_names)
            reward = _number(logs["eval_reward"])
            self.bar.write(f"  validation after step {state.global_step}: reward {reward} · {means}")
        run_directory.save_state(args.output_dir, state)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()

    def say_step(self, state, logs: dict) -> None:
        """One line: step, reward, mean of each reward, completion length, share truncated, tokens per second."""
        now, tokens = time.perf_counter(), state.num_input_tokens_seen
        rate = (tokens - self.tokens) / (now - self.logged_at)
        left = (now - self.started_at) / (state.global_step - self.first_step) * (state.max_steps - state.global_step)
        self.tokens, self.logged_at = tokens, now
        columns = {"step": f"{state.global_step}/{state.max_steps}", "reward": _number(logs["reward"])}
        columns |= {name: _number(logs[f"rewards/{name}/mean"]) for name in self.reward_names}
        columns |= {"tokens": f"{logs['completions/mean_length']:.0f}"}
        columns |= {"truncated": f"{logs['completions/clipped_ratio']:.1%}", "tokens/s": f"{rate:,.0f}"}
        columns |= {"left": str(datetime.timedelta(seconds=round(left)))}
        widths = {name: max(len(name), 9 if name == "step" else 7) for name in columns}
        if self.lines == 0:
            self.bar.write("  (loss is not shown: in GRPO it is near 0 by construction and does not measure progress)")
        if self.lines % 20 == 0:
            self.bar.write("  ".join(f"{name:>{widths[name]}}" for name in columns))
        self.bar.write("  ".join(f"{value:>{widths[name]}}" for name, value in columns.items()))
        self.lines += 1

    def say_sample(self, logged: dict, count: int) -> None:
        """Print a few completions, at the first logging step and `SAMPLES` - 1 times later.

        Args:
            logged: TRL's `GRPOTrainer._logs`: `prompt`, `completion`, and `rewards` by name.
            count: how many.
        """
        if self.bar is None or not logged["completion"]:
            return
        self.completion = text(logged["completion"][0])[:2000]
        if self.lines < self.next_sample:
            return
        self.next_sample += self.sample_every
        for index in range(min(count, len(logged["completion"]))):
            prompt, completion = logged["prompt"][index], text(logged["completion"][index]).strip()
            question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            scores = " · ".join(f"{name} {_number(values[index])}" for name, values in logged["rewards"].items())
            self.bar.write(_framed(f"{question.strip()[-600:]}\n→ {completion}\n[{scores}]"))


def _framed(body: str) -> str:
    return "\n".join(f"  │ {line}".rstrip() for line in ["", *body.split("\n"), ""])


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def say_plan(plan, all_findings: bool) -> None:
    """The plan as a table, then the warnings, or the result of every check."""
    for name, value in plan.table:
        print(f"  {name:8} {value}")
    for finding in plan.findings:
        if all_findings or finding.status == "warning":
            # The text of an error is printed once, when the request is refused.
            message = f": {finding.message}" if finding.status == "warning" else ""
            print(f"  {finding.status:8} {finding.check}{message}")


def say_stopped(output_dir: str, state, signal_name: str) -> None:
    """The training stopped on a signal, with a checkpoint. STOPPED_FILE tells the batch script."""
    print(
        f"\n{output_dir}: stopped by {signal_name} after step {state.global_step} of {state.max_steps}; "
        f"checkpoint-{state.global_step} is complete, and the same command continues from it"
    )
    if file := os.environ.get("STOPPED_FILE"):
        Path(file).touch()


def say_finished(output_dir: str, steps: int) -> None:
    """The requested run is already finished."""
    print(
        f"{output_dir} is finished ({steps} steps); nothing was changed.\n"
        f"  continue:   the same command with --max_steps {2 * steps}\n"
        f"  start anew: --output_dir NEW, or --overwrite_output_dir, which moves this run aside"
    )
    _tell_launcher(output_dir)


def say_summary(output_dir: str, state, reward_names: list[str]) -> None:
    """First and last means, where the files are, and what to do next."""
    print(f"\n{output_dir}: finished {state.global_step} steps")
    if logs := [entry for entry in state.log_history if "reward" in entry]:
        count = min(SUMMARY_STEPS, math.ceil(len(logs) / 2))
        print(f"  {'mean of':12} {f'first {count}':>10} {f'last {count}':>10}  (logging steps)")
        for label, key in [("reward", "reward"), *((name, f"rewards/{name}/mean") for name in reward_names)]:
            ends = ([entry[key] for entry in part if entry[key] is not None] for part in (logs[:count], logs[-count:]))
            first, last = (_number(sum(values) / len(values) if values else None) for values in ends)
            print(f"  {label:12} {first:>10} {last:>10}")
    lines = {"model": output_dir, "metrics": f"{output_dir}/trainer_state.json"}
    if Path(output_dir, "completions").is_dir():
        lines["completions"] = f"{output_dir}/completions/*.parquet"
    lines["next"] = f"python eval.py {output_dir} --with_base  (accuracy before and after)"
    print(*(f"  {name:12} {value}" for name, value in lines.items()), sep="\n")
    print(f"               python plots.py {output_dir}")
    longer = f"--max_steps {2 * state.global_step}"
    print(f"               python rl_grpo.py --config {output_dir}/recipe.yaml {longer}  (continues this run)")
    _tell_launcher(output_dir)


def _tell_launcher(output_dir: str) -> None:
    """Write the run's directory into FINISHED_FILE; the launcher then evaluates it."""
    if file := os.environ.get("FINISHED_FILE"):
        Path(file).write_text(output_dir)
