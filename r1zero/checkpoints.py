"""Which checkpoints of a run are complete: a seal, written last, names every file and its size.

transformers resumes from the checkpoint with the highest number, complete or not, and deletes older ones as soon as
its first process has written its part. Here a checkpoint counts only with its seal, written after every process has
written its part; then older ones are deleted. A folder that is not ours is never deleted.
"""

import errno
import itertools
import json
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

SEAL = "whole.json"


class DiskFull(Exception):
    """A file could not be written; the message is one line that says which checkpoint is safe and what to do."""


def begin(folder: Path) -> None:
    """Start a checkpoint: an empty seal marks it as ours. Delete an unfinished one of ours, move any other aside."""
    if folder.exists() and is_ours(folder):
        shutil.rmtree(folder)
    elif folder.exists():
        move_aside(folder)
    folder.mkdir(parents=True)
    write(folder / SEAL, json.dumps({"step": None, "files": {}}))


def seal(folder: Path, step: int, pattern: str = "**/*") -> None:
    """Declare the files of a checkpoint, or those of a run's final model, complete at an optimizer step."""
    sizes = {}
    for file in folder.glob(pattern):
        if file.is_file() and file.name != SEAL:
            _flush(file)  # on the disk, and not only in the cache
            sizes[str(file.relative_to(folder))] = file.stat().st_size
    write(folder / SEAL, json.dumps({"step": step, "files": sizes}, indent=1))


def sealed_step(folder: Path) -> int | None:
    """The step in a folder's seal; None if there is no seal, or a file is missing or has another size."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # no seal, or not one of ours
        content = json.loads((folder / SEAL).read_text())
        if content["files"] and all((folder / name).stat().st_size == size for name, size in content["files"].items()):
            return content["step"]
    return None


def is_ours(folder: Path) -> bool:
    """Whether this script began the folder: it has a seal, or nothing was written yet."""
    return (folder / SEAL).is_file() or all(file.name == f"{SEAL}.new" for file in folder.iterdir())


def write(path: Path, content: str) -> None:
    """Write a file atomically: a reader, or a crash, sees the old content or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(content)
    _flush(new)
    new.replace(path)
    _flush(path.parent)


def move_aside(path: Path) -> Path:
    """Rename a folder to the first free `<name>.old-<n>`, and return that."""
    names = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def all_checkpoints(directory: Path) -> dict[int, Path]:
    """A run's checkpoints by step, first step first, complete or not."""
    paths = directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return dict(sorted((int(step), path) for path in paths if (step := path.name.partition("-")[2]).isdecimal()))


def last_complete(directory: Path) -> tuple[Path | None, list[str]]:
    """A run's last complete checkpoint, and the names of later ones that are incomplete."""
    paths = list(reversed(all_checkpoints(directory).values()))
    later = list(itertools.takewhile(lambda path: sealed_step(path) is None, paths))
    return next(iter(paths[len(later) :]), None), [path.name for path in later]


def finish(folder: Path, step: int, limit: int | None, best: str | None) -> None:
    """Seal a checkpoint, then delete ours except the last `limit` complete ones (None or 0: all of them) and `best`."""
    seal(folder, step)
    ours = [path for path in all_checkpoints(folder.parent).values() if is_ours(path)]
    best_last = sorted(filter(sealed_step, ours), key=lambda path: path.resolve() == Path(best or "").resolve())
    keep = [folder, *best_last[-(limit or 0) :]]
    for path in [path for path in ours if path not in keep]:
        shutil.rmtree(path)


@contextmanager
def disk_may_be_full(output_dir: str, size: int):
    """Turn the many errors of a full disk, which has no room for a file of `size` bytes, into one line: `DiskFull`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        is_full = (free := shutil.disk_usage(output_dir).free / 1e9) < size / 1e9
        try:
            with tempfile.TemporaryFile(dir=output_dir) as file:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError as refused:  # no space, quota, file size limit
            is_full |= refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not is_full:
            raise
        checkpoint, _ = last_complete(Path(output_dir))
        safe = f"{checkpoint} is complete" if checkpoint else "no checkpoint was written yet"
        safe += f", and the same command {'continues from it' if checkpoint else 'starts again'}"
        reason = " ".join(str(error).split())[:200]
        raise DiskFull(f"{output_dir}: the disk is full ({free:.1f} GB free): {reason}. Make room: {safe}") from error


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
