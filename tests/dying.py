"""Named as a reward: rank 1 dies in a save, after rank 0 has written all of its own part of the checkpoint.

Of the checkpoint that DIE_IN_SAVE_OF names.
"""

import os
import signal
import time
from pathlib import Path

from transformers import Trainer

save_rng_state = Trainer._save_rng_state


def die(self, output_dir):
    if self.args.process_index == 1 and Path(output_dir).name == os.environ.get("DIE_IN_SAVE_OF"):
        while not Path(output_dir, "trainer_state.json").is_file():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    save_rng_state(self, output_dir)


Trainer._save_rng_state = die


def nothing(completions, **kwargs):
    """No reward."""
    return [0.0] * len(completions)
