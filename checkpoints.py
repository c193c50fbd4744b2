"""What in a run's directory is whole: a seal written last names every file and its size.

transformers takes the checkpoint with the highest number for the one to resume from, and deletes older ones as soon
as its first process has written its part. A run that is killed while it saves then resumes from half a checkpoint,
or has none left. Here a checkpoint counts only with its seal, which is written when every process has written its
part, and older ones go only after that.
"""

import errno
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

SEAL = "whole.json"
# What a file that outgrows its disk (or quota, or limit) is called by Python, by safetensors and by torch.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_TEXT = re.compile(
    r"os error (28|122|27)\b|PytorchStreamWriter failed|inline_container\.cc.*unexpected pos", re.DOTALL
)


class DiskFull(Exception):
    """Something could not be written; the message is one line that says what is safe and what to do."""


def seal(folder: Path, step: int, pattern: str = "**/*") -> None:
    """Declare whole what is in a folder.

    Args:
        folder: a checkpoint, or a run's directory with its final model.
        step: the optimizer step that it is of.
        pattern: its files that belong to it.
    """
    files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.glob(pattern) if file.is_file()}
    files.pop(SEAL, None)
    write(folder / SEAL, json.dumps({"step": step, "files": files}, indent=1))


def sealed_step(folder: Path) -> int | None:
    """The step that a folder's seal names; None if there is no seal, or a file is not there as it was sealed."""
    try:
        content = json.loads((folder / SEAL).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in content["files"].items())
        return content["step"] if whole and content["files"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or not a seal
        return None


def write(path: Path, content: str) -> None:
    """Write a file as a whole: who reads it, or is left with it, finds the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(content)
    os.replace(new, path)


def all_checkpoints(directory: Path) -> dict[int, Path]:
    """A run's checkpoints, whole or not, by step, the first step first."""
    named = {path.name.rpartition("-")[2]: path for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return dict(sorted((int(step), path) for step, path in named.items() if step.isdecimal()))


def last_whole(directory: Path) -> tuple[Path | None, list[str]]:
    """A run's last whole checkpoint, and the names of later ones that are not whole."""
    passed_over = []
    for path in reversed(all_checkpoints(directory).values()):
        if sealed_step(path) is not None:
            return path, passed_over
        passed_over.append(path.name)
    return None, passed_over


def clear_for(folder: Path) -> None:
    """Remove what an interrupted save left where a checkpoint is to be written."""
    if folder.exists():
        shutil.rmtree(folder)


def finish(folder: Path, step: int, limit: int | None, best: str | None) -> None:
    """Seal a checkpoint that is written, then delete those that it replaces.

    Args:
        folder: the checkpoint.
        step: its step.
        limit: how many to keep (`save_total_limit`); None or 0 keeps all.
        best: one to keep in any case.
    """
    seal(folder, step)
    for path in all_checkpoints(folder.parent).values():
        if sealed_step(path) is None:
            shutil.rmtree(path)
    rotate_checkpoints(str(folder.parent), save_total_limit=limit, best_model_checkpoint=best)


@contextmanager
def disk_may_be_full(output_dir: str):
    """Turn the many errors of a full disk into one line that names what is safe.

    Raises:
        DiskFull: something could not be written for want of space. Every other error passes.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if getattr(error, "errno", None) not in FULL and not FULL_TEXT.search(str(error)):
            raise
        free = shutil.disk_usage(output_dir).free / 1e9
        checkpoint, _ = last_whole(Path(output_dir))
        safe = f"{checkpoint} is whole, and the same command goes on from it" if checkpoint else (
            "no checkpoint was written yet, and the same command begins again"
        )  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise DiskFull(f"{output_dir}: the disk is full ({free:.1f} GB free): {reason}. Make room: {safe}") from error
