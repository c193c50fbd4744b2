"""Alarms: metrics that show a training going wrong without an error, each reported once, with what to do.

To add an alarm, give it a text in `MESSAGES` and a condition in `Alarms._find`. An alarm stops nothing: it may be
intended, and a run that is left alone for a night should not end because of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

START = 20  # logging steps before a reward counts as never paid
ROW = 5  # consecutive logging steps that a condition must hold
WINDOW = 10  # logging steps whose mean is compared with that of earlier windows
FALL = 0.1  # drop in accuracy
KL = 1.0  # nats per token
ACCURACY, REFLECTION, LENGTH = "rewards/accuracy/mean", "rewards/reflection/mean", "completions/mean_length"
TRUNCATED, NO_STD, ENTROPY = "completions/clipped_ratio", "frac_reward_zero_std", "entropy"

MESSAGES = {
    "nan": "{key} is {value}: the weights are or will be NaN; stop, and resume from an earlier checkpoint "
    "(--resume_from_checkpoint) with a lower learning_rate or max_grad_norm",
    "zero": "reward {name} was 0 for every completion of {START} logging steps: read a completion. Does the prompt ask "
    "for what the reward reads, and is max_completion_length long enough?",
    "std": "all completions of every group had the same reward for {ROW} logging steps, so nothing is learned: more "
    "num_generations, a higher temperature, or problems that are neither all solved nor all failed",
    "truncated": "more than half of the completions are truncated and can hardly be right: a longer "
    "max_completion_length, or mask_truncated_completions; if the model never ends, check its end-of-sequence token",
    "kl": "the model is more than {KL:g} nats per token away from the reference model: a lower learning_rate, or a "
    "higher beta",
    "entropy": "entropy fell below a tenth of its start: the completions of a prompt are nearly identical, and little "
    "is left to learn from; a higher temperature or epsilon_high, or a lower learning_rate",
    "hacking": "accuracy fell from {best:.2f} to {now:.2f} while {what} rose: the model earns the other rewards "
    "instead; a lower learning_rate, lower reward_weights for them, or their _if_correct form",
}


@dataclass
class Alarm:
    """A warning, and whether a completion beside it helps."""

    message: str
    show_completion: bool


class Alarms:
    """Reads the metrics of each logging step; each alarm comes once per run."""

    def __init__(self, reward_names: list[str]):
        self.reward_names = reward_names
        self.history: list[dict] = []
        self.values = {key: [] for key in (ACCURACY, REFLECTION, LENGTH, TRUNCATED, NO_STD, ENTROPY, "kl")}
        self.said: set[tuple] = set()

    def see(self, logs: dict) -> list[Alarm]:
        """The new alarms after a logging step with these metrics, see docs/metrics.md."""
        self.history.append(logs)
        for key, past in self.values.items():  # a missing or non-finite value repeats the one before, or 0
            value = logs.get(key)
            past.append(value if value is not None and math.isfinite(value) else past[-1] if past else 0.0)
        alarms = []
        for kind, values in self._find():
            if (about := (kind, values.get("name"))) not in self.said:
                self.said.add(about)
                message = MESSAGES[kind].format(START=START, ROW=ROW, KL=KL, **values)
                alarms.append(Alarm(message, show_completion=kind == "zero"))
        return alarms

    def _find(self) -> Iterator[tuple[str, dict]]:
        """Everything that is wrong now: a key of `MESSAGES`, and the values for its text."""
        for key in ("loss", "grad_norm", "entropy", "kl"):
            if (value := self.history[-1].get(key)) is not None and not math.isfinite(value):
                yield "nan", {"key": key, "value": value}
        steps, values = len(self.history), self.values
        for name in self.reward_names:
            if steps >= START and all(entry.get(f"rewards/{name}/mean") == 0 for entry in self.history[:START]):
                yield "zero", {"name": name}
        lowest = {key: min(past[-ROW:]) for key, past in values.items()}
        if steps >= ROW and lowest[NO_STD] == 1:
            yield "std", {}
        if steps >= ROW and lowest[TRUNCATED] > 0.5:
            yield "truncated", {}
        if steps >= ROW and lowest["kl"] > KL:
            yield "kl", {}
        if steps >= 2 * ROW and sum(values[ENTROPY][-ROW:]) < 0.1 * sum(values[ENTROPY][:ROW]):
            yield "entropy", {}
        if steps >= 2 * WINDOW:  # accuracy is below its best, and another paid quantity rose since then
            accuracy, reflection, length = (
                [sum(values[key][start : start + WINDOW]) / WINDOW for start in range(steps - WINDOW + 1)]
                for key in (ACCURACY, REFLECTION, LENGTH)
            )
            best = accuracy.index(max(accuracy))
            for what, means, rise in (("reflection", reflection, 0.02), ("length", length, 0.2 * length[best])):
                if accuracy[-1] < accuracy[best] - FALL and means[-1] > means[best] + rise:
                    yield "hacking", {"best": accuracy[best], "now": accuracy[-1], "what": what}
