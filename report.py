"""What a run shows while it trains, and what it leaves in its directory.

In the directory: `recipe.yaml` (the resolved recipe), `environment.jsonl` (packages, commit and machine, a line
a start), `trainer_state.json` (metrics by step, written anew at every logging step), `completions/*.parquet`
(written by TRL), `validation/*.parquet` (the same of the held-out rows), the checkpoints and the final model.
`evaluate.py` and `plots.py` read only that.
"""

import datetime
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import datasets
import pandas
import torch
import transformers
import yaml
from huggingface_hub import constants
from tqdm.auto import tqdm
from transformers import TrainerCallback

import checkpoints
from rewards import text
from watch import Watch

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "deepspeed", "peft", "wandb")
SAMPLES = 6  # how often a run shows completions
SUMMARY_STEPS = 5  # the summary's first and last means are over this many logging steps


def quieten() -> None:
    """Turn off what the libraries say that a reader of a training's output can do nothing about."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are raised as well, and said once
    transformers.utils.logging.disable_progress_bar()
    # A checkpoint holds the weights of a tied head once, under the embedding's name.
    logging.getLogger("transformers.trainer").addFilter(
        lambda record: "missing keys in the checkpoint model loaded: ['lm_head.weight']" not in record.getMessage()
    )
    # TRL 1.16 reads an attribute that transformers 5.23 renamed, at every step.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


class RunReport(TrainerCallback):
    """One line a logging step under a progress bar, a sample of the completions now and then, and live metrics.

    It stands in for transformers' `ProgressCallback`, which prints TRL's 25 metrics as one dictionary.
    """

    def __init__(self, reward_names: list[str]):
        self.reward_names = reward_names
        self.bar = None
        self.lines = 0
        self.watch = Watch(reward_names)
        self.completion = None  # the last one that was seen, for a warning
        self.next_sample = 1
        self.started_at = self.logged_at = self.tokens = self.first_step = self.sample_every = None

    # Callback events -----------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.started_at = self.logged_at = time.perf_counter()
        self.tokens, self.first_step = state.num_input_tokens_seen, state.global_step
        for entry in state.log_history:  # of a resumed run: what was warned of is not said again
            if "reward" in entry:
                self.watch.see(entry)
        self.sample_every = math.ceil(state.max_steps / max(1, state.logging_steps) / SAMPLES)
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=args.disable_tqdm or not sys.stderr.isatty(),  # in a log file the lines are enough
        )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None or "train_runtime" in logs:
            return
        if "reward" in logs:
            self.say_step(state, logs)
            for warning in self.watch.see(logs):
                self.bar.write(f"  warning  {warning}")
                if "read one" in warning and self.completion is not None:
                    self.bar.write(_framed(f"→ {self.completion}"))
        elif "eval_reward" in logs:
            means = " · ".join(f"{name} {_number(logs[f'eval_rewards/{name}/mean'])}" for name in self.reward_names)
            reward = _number(logs["eval_reward"])
            self.bar.write(f"  validation after step {state.global_step}: reward {reward} · {means}")
        save_state(args.output_dir, state)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()

    # What is said --------------------------------------------------------------------------------------

    def say_step(self, state, logs):
        """One line of: step, reward, each reward's mean, completion length, share truncated, tokens a second."""
        now, tokens = time.perf_counter(), state.num_input_tokens_seen
        rate = (tokens - self.tokens) / (now - self.logged_at)
        left = (now - self.started_at) / (state.global_step - self.first_step) * (state.max_steps - state.global_step)
        self.tokens, self.logged_at = tokens, now
        columns = {
            "step": f"{state.global_step}/{state.max_steps}",
            "reward": _number(logs["reward"]),
            **{name: _number(logs[f"rewards/{name}/mean"]) for name in self.reward_names},
            "tokens": f"{logs['completions/mean_length']:.0f}",
            "truncated": f"{logs['completions/clipped_ratio']:.1%}",
            "tokens/s": f"{rate:,.0f}",
            "left": str(datetime.timedelta(seconds=round(left))),
        }
        widths = {name: max(len(name), 9 if name == "step" else 7) for name in columns}
        if self.lines == 0:
            self.bar.write("  (loss is left out: in GRPO it is near 0 by construction, and no measure of progress)")
        if self.lines % 20 == 0:
            self.bar.write("  ".join(f"{name:>{widths[name]}}" for name in columns))
        self.bar.write("  ".join(f"{value:>{widths[name]}}" for name, value in columns.items()))
        self.lines += 1

    def say_sample(self, prompts, completions, rewards, advantages, step, num_samples=None, extra=None):
        """Print a few completions, at the first logging step and `SAMPLES - 1` times more.

        Takes the arguments of TRL's `print_prompt_completions_sample`, in whose place TRL calls it.
        """
        if completions:
            self.completion = text(completions[0])[:2000]
        if self.bar is None or self.lines < self.next_sample:
            return
        self.next_sample += self.sample_every
        for index in range(min(num_samples or 1, len(completions))):
            prompt = prompts[index] if isinstance(prompts[index], str) else prompts[index][-1]["content"]
            scores = " · ".join(f"{name} {_number(values[index])}" for name, values in rewards.items())
            body = f"{prompt.strip()[-600:]}\n→ {text(completions[index]).strip()}\n[{scores}]"
            self.bar.write(_framed(body))


def _framed(body: str) -> str:
    return "\n".join(f"  │ {line}".rstrip() for line in ["", *body.split("\n"), ""])


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


# ---------------------------------------------------------------------------------------------------------
# The run's directory
# ---------------------------------------------------------------------------------------------------------


def open_directory(output_dir: str, recipe: dict, move_aside: bool) -> None:
    """Make the run's directory, with its recipe and a line on what it runs on.

    Args:
        output_dir: the directory.
        recipe: the resolved request, see `recipe.RecipeParser.resolve`.
        move_aside: move what is there to `<output_dir>.old-<n>` first.
    """
    directory = Path(output_dir)
    if move_aside:
        number = 1
        while (old := directory.with_name(f"{directory.name}.old-{number}")).exists():
            number += 1
        directory.rename(old)
        print(f"{directory} is now {old}")
    directory.mkdir(parents=True, exist_ok=True)
    header = "# The recipe of this run as it was resolved from a recipe file and the command line.\n"
    checkpoints.write(directory / "recipe.yaml", header + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    with open(directory / "environment.jsonl", "a") as file:
        file.write(json.dumps(describe_environment()) + "\n")


def describe_environment() -> dict:
    """What a result depends on beside its recipe."""
    commit = None
    if shutil.which("git"):
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True).stdout.strip()
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or None,
        "python": platform.python_version(),
        "packages": {name: installed.get(name) for name in PACKAGES},
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
    }


def save_state(output_dir: str, state) -> None:
    """Write the metrics so far; whoever reads at the same time finds the old file or the new one, whole."""
    path = Path(output_dir) / "trainer_state.json"
    state.save_to_json(f"{path}.new")
    os.replace(f"{path}.new", path)


def save_validation(output_dir: str, step: int, kept: dict) -> None:
    """Write a validation's completions as TRL writes a step's, to `validation/validation_<step>.parquet`.

    Args:
        kept: TRL's `GRPOTrainer._logs`, by column; the validation's rows are the same ones every time.
    """
    folder = Path(output_dir) / "validation"
    folder.mkdir(exist_ok=True)
    columns = {"prompt": kept["prompt"], "completion": kept["completion"], **kept["rewards"], **kept["extra"]}
    table = pandas.DataFrame({"step": step, **{name: list(values) for name, values in columns.items()}})
    table.to_parquet(folder / f"validation_{step:05d}.parquet")


def say_plan(plan, all_findings: bool) -> None:
    """The plan as a table, then what its checks found: all of it, or what is to be warned of."""
    for what, how_much in plan.table:
        print(f"  {what:8} {how_much}")
    for finding in plan.findings:
        if all_findings or finding.status == "warning":
            # What an error is, and its mend, is said once, when the request is refused.
            said = finding.message if finding.status == "warning" else ""
            print(f"  {finding.status:8} {finding.check}{': ' if said else ''}{said}")


def say_prefetched(request, plan) -> None:
    """Model and data are in the cache."""
    rows = len(plan.train_dataset) + len(plan.eval_dataset or [])
    print(
        f"{request.model_name_or_path} and {request.dataset_name} ({rows} rows) are here whole, "
        f"what comes from the hub in {constants.HF_HOME}"
    )


def say_stopped(output_dir: str, state, signal_name: str) -> None:
    """The training ended early, on a signal, with a checkpoint. A batch script learns of it from STOPPED_FILE."""
    print(
        f"\n{output_dir}: stopped by {signal_name} after step {state.global_step} of {state.max_steps}; "
        f"checkpoint-{state.global_step} is whole, and the same command goes on from it"
    )
    if file := os.environ.get("STOPPED_FILE"):
        Path(file).touch()


def tell_finished(output_dir: str) -> None:
    """Write the run's directory into FINISHED_FILE, if that is set: the launcher evaluates it then."""
    if file := os.environ.get("FINISHED_FILE"):
        Path(file).write_text(output_dir)


def say_finished(output_dir: str, steps: int) -> None:
    """The run that was asked for is done already."""
    print(
        f"{output_dir} is finished ({steps} steps); nothing was changed.\n"
        f"  go on:      the same command with --max_steps {2 * steps}\n"
        f"  start anew: --output_dir NEW, or --overwrite_output_dir, which moves this run aside"
    )
    tell_finished(output_dir)


def say_summary(output_dir: str, state, reward_names: list[str]) -> None:
    """First and last means, where everything is, and what to do next."""
    logs = [entry for entry in state.log_history if "reward" in entry]
    directory = Path(output_dir)
    print(f"\n{directory}: finished {state.global_step} steps")
    if logs:
        count = min(SUMMARY_STEPS, math.ceil(len(logs) / 2))
        print(f"  {'mean of':12} {f'first {count}':>10} {f'last {count}':>10}  (logging steps)")
        for label, key in [("reward", "reward"), *((name, f"rewards/{name}/mean") for name in reward_names)]:
            values = [entry[key] for entry in logs]
            print(f"  {label:12} {_mean(values[:count]):>10} {_mean(values[-count:]):>10}")
    print(f"  model        {directory}")
    print(f"  metrics      {directory / 'trainer_state.json'}")
    if (directory / "completions").is_dir():
        print(f"  completions  {directory / 'completions'}/*.parquet")
    print(f"  next         python evaluate.py {directory} --with_base  (accuracy before and after)")
    print(f"               python plots.py {directory}")
    print(
        f"               python rl_grpo.py --config {directory / 'recipe.yaml'} --max_steps {2 * state.global_step}"
        "  (goes on from here)"
    )
    tell_finished(output_dir)


def _mean(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return _number(sum(numbers) / len(numbers) if numbers else None)


def wandb_mode() -> str:
    """What wandb will do: WANDB_MODE, or `online` where there is an account's key, or else `offline`."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = wandb.Settings()
    settings.update_from_env_vars({name: value for name, value in os.environ.items() if name != "WANDB_MODE"})
    has_key = settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url)
    return "online" if has_key else "offline"


def name_trackers(report_to: str | list[str] | None, output_dir: str | None) -> str:
    """Where metrics go, and how, for the plan."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or ["none"])
    if "wandb" in names and (mode := wandb_mode()) != "online":
        names[names.index("wandb")] = f"wandb, {mode}" + (
            f" (no API key; to upload it: wandb sync {output_dir}/wandb/offline-run-*)" if mode == "offline" else ""
        )
    return " and ".join(names)


def prepare_wandb(output_dir: str) -> None:
    """Let a run with no wandb account log offline, into its own directory, instead of ending in an error."""
    os.environ.setdefault("WANDB_DIR", output_dir)
    if not os.environ.get("WANDB_MODE"):  # empty is unset for people, and an error for wandb
        os.environ["WANDB_MODE"] = wandb_mode()
        if os.environ["WANDB_MODE"] == "offline":
            os.environ.setdefault("WANDB_SILENT", "true")  # its own dozen lines would say what the plan has said
