"""Named as a reward: rank 1 sees an old state of the run's directory, as on a network file system, or none of it.

STALE=old: rank 1 finds no checkpoint. STALE=none: rank 1 does not see any folder called checkpoint-*.
"""

import os
from pathlib import Path

from r1zero import checkpoints

if os.environ.get("RANK") == "1":
    if os.environ["STALE"] == "old":
        checkpoints.last_complete = lambda directory: (None, [])
    if os.environ["STALE"] == "none":
        is_dir = Path.is_dir
        Path.is_dir = lambda self: "checkpoint-" not in self.name and is_dir(self)


def nothing(completions, **kwargs):
    """No reward."""
    return [0.0] * len(completions)
