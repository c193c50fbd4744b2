"""A reward that takes its time, so that a signal can be sent while a tiny model trains."""

import time


def letters(completions, **kwargs):
    """The completion's length, after a quarter of a second."""
    time.sleep(0.25)
    return [float(len(completion[0]["content"])) for completion in completions]
