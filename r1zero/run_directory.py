"""A run's directory: what is there at the start, and what a run writes into it.

`recipe.yaml` (resolved), `environment.jsonl` (packages, commit and machine, one line per start), `trainer_state.json`
(metrics by step), `completions/*.parquet`, `validation/*.parquet`, checkpoints, and the final model.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import yaml
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer import TRAINER_STATE_NAME, TrainerState

from r1zero import checkpoints
from r1zero.recipe import RequestError

# Keys that start with these may differ between two starts of one run: how long it goes on, how a batch is cut into
# micro-batches, and what is reported and kept. Any other difference makes it another run, for another directory.
MAY_CHANGE = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "report_to",
    "run_name", "disable_tqdm", "push_to_hub", "use_cpu", "activation_checkpointing", "pad_to_multiple_of",
    "logging_", "log_", "save_", "eval_", "hub_", "dataloader_", "num_completions_", "ddp_",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "deepspeed", "peft", "wandb")
OTHER_DIRECTORY = "give another --output_dir, or --overwrite_output_dir, which moves what is there aside"


def check(request, recipe: dict, plan) -> None:
    """Find out where the run stands; sets `checkpoint`, `finished_steps` and `run_to_move` of the plan.

    RequestError: the directory cannot be written, or holds something else than this run.
    """
    directory = Path(request.output_dir).expanduser()
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"output_dir {directory} is a file")
    try:
        tempfile.TemporaryFile(dir=nearest_folder(directory)).close()
    except OSError as error:
        reason = f"cannot be written ({error.strerror}): give another --output_dir"
        raise RequestError(f"output_dir {directory} {reason}") from error
    wish = request.resume_from_checkpoint
    if wish is not None and wish.lower() not in ("true", "false"):
        return _start_at(wish, directory, plan)
    wish = wish and wish.lower()
    checkpoint, passed_over = checkpoints.last_complete(directory)
    if wish == "true" and checkpoint is None:
        raise RequestError(f"resume_from_checkpoint: {directory} holds no complete checkpoint to resume from")
    plan.run_to_move = request.overwrite_output_dir and directory.is_dir() and any(directory.iterdir())
    if plan.run_to_move:
        return
    if not (directory / "recipe.yaml").is_file():
        if any(directory.glob("*.safetensors")) or checkpoints.all_checkpoints(directory):
            raise RequestError(f"{directory} holds a model that this script did not write: {OTHER_DIRECTORY}")
        return
    if wish == "false":
        raise RequestError(f"{directory} holds a run already: {OTHER_DIRECTORY}")
    before = yaml.safe_load((directory / "recipe.yaml").read_text()) or {}
    keys = [key for key in sorted(before.keys() | recipe.keys()) if not key.startswith(MAY_CHANGE)]
    if changed := [key for key in keys if before.get(key) != recipe.get(key)]:
        differences = "; ".join(f"{key}: {before.get(key)} there, {recipe.get(key)} here" for key in changed[:4])
        differences += "; …" if len(changed) > 4 else ""
        raise RequestError(f"{directory} holds the run of another recipe ({differences}): {OTHER_DIRECTORY}")
    plan.checkpoint = checkpoint and str(checkpoint)
    if passed_over:
        message = ": incomplete, its save was interrupted; resuming from an earlier one"
        plan.warn("directory", ", ".join(passed_over) + message)
    done = checkpoints.sealed_step(directory)
    same_length = all(before.get(key) == recipe.get(key) for key in ("max_steps", "num_train_epochs"))
    if done is not None and (same_length or 0 < request.max_steps <= done):
        plan.finished_steps = done


def _start_at(path: str, directory: Path, plan) -> None:
    """Resume from the checkpoint that the request names."""
    try:
        step = TrainerState.load_from_json(str(Path(path, TRAINER_STATE_NAME))).global_step
    except (OSError, ValueError, TypeError) as error:
        reason = f"is not a complete checkpoint: it has no readable {TRAINER_STATE_NAME}"
        raise RequestError(f"resume_from_checkpoint {path} {reason}") from error
    found = checkpoints.all_checkpoints(directory) if Path(path).resolve().parent == directory.resolve() else {}
    if late := ", ".join(one.name for its_step, one in found.items() if its_step > step):
        fix = "move them out of the directory, or leave resume_from_checkpoint out to resume from the last one"
        raise RequestError(f"resume_from_checkpoint {path}: {late} would count as later checkpoints of this run: {fix}")
    plan.checkpoint = path


def nearest_folder(directory: Path) -> Path:
    """The directory, or the nearest of its parents that exists."""
    return next(path for path in (directory, *directory.absolute().parents) if path.is_dir())


def open_directory(output_dir: str, recipe: dict, run_to_move: bool) -> None:
    """Create the run's directory with its recipe and a line about the machine; first move an old run aside if asked."""
    directory = Path(output_dir)
    if run_to_move:
        print(f"{directory} is now {checkpoints.move_aside(directory)}")
    directory.mkdir(parents=True, exist_ok=True)
    header = "# The recipe of this run, resolved from a recipe file and the command line.\n"
    checkpoints.write(directory / "recipe.yaml", header + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else None
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    environment = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or None,
        "python": platform.python_version(),
        "packages": {name: installed.get(name) for name in PACKAGES},
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
    }
    with open(directory / "environment.jsonl", "a") as file:
        file.write(json.dumps(environment) + "\n")


def agree(plan) -> None:
    """Let rank 0 decide for all ranks what to resume from: others may see an old state of a network file system.

    Raises:
        RequestError: on all ranks, if one of them does not see that checkpoint.
    """
    decided = [plan.checkpoint, plan.finished_steps]
    plan.checkpoint, plan.finished_steps = broadcast_object_list(decided)
    missing = plan.checkpoint is not None and not Path(plan.checkpoint).is_dir()
    rank = f"rank {os.environ.get('RANK', '0')} on {platform.node()}"
    if blind := [rank for rank in gather_object([rank if missing else None]) if rank]:
        raise RequestError(
            f"{', '.join(blind)} does not see {plan.checkpoint}, from which rank 0 resumes: give an --output_dir on a "
            "file system that all nodes share"
        )


def save_state(output_dir: str, state) -> None:
    """Write the metrics so far to `trainer_state.json`, atomically, so that a live run can be read."""
    path = Path(output_dir, TRAINER_STATE_NAME)
    state.save_to_json(f"{path}.new")
    os.replace(f"{path}.new", path)


def save_completions(output_dir: str, kind: str, step: int, table) -> None:
    """Write a table of completions to `completions/completions_<step>.parquet`, or the same with `validation`."""
    folder = Path(output_dir, kind)
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / f"{kind}_{step:05d}.parquet")
