"""Watch a training's metrics for what goes wrong silently, and say it once, with what to do.

Nothing is stopped: each of these can be meant, and a run that is left alone for a night should not end for one.
"""

import math
from collections.abc import Iterator

START = 20  # logging steps after which a reward that was never paid is called so
ROW = 5  # logging steps in a row that something has to last
WINDOW = 10  # logging steps whose mean is compared with that of any earlier ones
FALL = 0.1  # of accuracy
KL = 1.0  # nats a token


MESSAGES = {
    "nan": "{key} is {value}: the weights are spoilt or will be; stop, and go on from an earlier checkpoint "
    "(--resume_from_checkpoint) with a lower learning_rate or max_grad_norm",
    "zero": "reward {name} was 0 for every completion of {START} logging steps: read one; does the prompt ask for what "
    "the reward reads, and is max_completion_length enough to get there?",
    "spread": "no group of completions had any spread of rewards for {ROW} logging steps, so nothing is learned: more "
    "num_generations, a higher temperature, or problems that are neither all solved nor hopeless",
    "truncated": "more than half of the completions are cut off and can hardly be right: a longer "
    "max_completion_length, or mask_truncated_completions; if the model never ends, look at its end-of-sequence token",
    "kl": "the model is over {KL:g} nats a token away from the reference model: a lower learning_rate, or more beta",
    "entropy": "entropy fell below a tenth of its start: completions of one prompt are nearly all the same, and little "
    "is left to learn from; a higher temperature or epsilon_high, or a lower learning_rate",
    "hacking": "accuracy fell from {best:.2f} to {now:.2f} while {what} rose: the other rewards are being farmed; a "
    "lower learning_rate, lower reward_weights for them, or their _if_correct form",
}


class Watch:
    """Reads the metrics of each logging step; each warning comes once a run."""

    def __init__(self, reward_names: list[str]):
        self.reward_names = reward_names
        self.history: list[dict] = []
        self.said: set[tuple] = set()

    def see(self, logs: dict) -> list[str]:
        """What there is to warn of after a logging step.

        Args:
            logs: TRL's metrics of the step, see README, "Metrics to watch".
        """
        self.history.append(logs)
        warnings = []
        for kind, values in self._find():
            about = (kind, values.get("name"))
            if about not in self.said:
                self.said.add(about)
                warnings.append(MESSAGES[kind].format(START=START, ROW=ROW, KL=KL, **values))
        return warnings

    def _find(self) -> Iterator[tuple[str, dict]]:
        """Everything that holds now: a key of `MESSAGES`, and the values that its text takes."""
        for key in ("loss", "grad_norm", "entropy", "kl"):
            value = self.history[-1].get(key)
            if value is not None and not math.isfinite(value):
                yield "nan", {"key": key, "value": value}
        if len(self.history) >= START:
            for name in self.reward_names:
                if all(entry.get(f"rewards/{name}/mean") == 0 for entry in self.history[:START]):
                    yield "zero", {"name": name}
        if self._lasts("frac_reward_zero_std", lambda value: value == 1):
            yield "spread", {}
        if self._lasts("completions/clipped_ratio", lambda value: value > 0.5):
            yield "truncated", {}
        if self._lasts("kl", lambda value: value > KL):
            yield "kl", {}
        entropy = self._values("entropy")
        if len(entropy) >= 2 * ROW and _mean(entropy[-ROW:]) < 0.1 * _mean(entropy[:ROW]):
            yield "entropy", {}

        # Accuracy below its best while what else is paid rose since then: the reward is earned another way.
        accuracy = _windows(self._values("rewards/accuracy/mean"))
        if len(accuracy) > WINDOW:
            best = max(range(len(accuracy)), key=accuracy.__getitem__)
            reflection = _windows(self._values("rewards/reflection/mean"))
            length = _windows(self._values("completions/mean_length"))
            for what, values, rise in (("reflection", reflection, 0.02), ("length", length, 0.2 * length[best])):
                if accuracy[-1] < accuracy[best] - FALL and values[-1] > values[best] + rise:
                    yield "hacking", {"best": accuracy[best], "now": accuracy[-1], "what": what}

    def _values(self, key: str) -> list[float]:
        """A metric by logging step; where it is missing or no number, the one before, or 0."""
        values: list[float] = []
        for entry in self.history:
            value = entry.get(key)
            is_number = value is not None and math.isfinite(value)
            values.append(value if is_number else values[-1] if values else 0.0)
        return values

    def _lasts(self, key: str, condition) -> bool:
        values = self._values(key)[-ROW:]
        return len(values) == ROW and all(map(condition, values))


def _windows(values: list[float]) -> list[float]:
    """The mean of each `WINDOW` values in a row."""
    return [_mean(values[start : start + WINDOW]) for start in range(len(values) - WINDOW + 1)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
