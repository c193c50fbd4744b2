"""How sure one can be of a share, and of the difference of two shares of the same items. Standard library only."""

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), 95 %; (0, 1) of no trials."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def of_share_in_groups(successes: list[int], trials: list[int]) -> tuple[float, float]:
    """Interval of a share, 95 %, where trials come in groups that are alike, such as completions of one prompt.

    Wilson's, with the effective number of trials (Korn and Graubard 1998): so many independent ones would vary as
    much as these groups do. Where nothing varies, so many as there are groups.

    Args:
        successes, trials: by group; a group may have no trials.
    """
    all_trials = sum(trials)
    if all_trials == 0:
        return 0.0, 1.0
    share = sum(successes) / all_trials
    groups = zip(successes, trials, strict=True)
    variance = sum((got - share * of) ** 2 for got, of in groups) / all_trials**2
    effective = share * (1 - share) / variance if variance else sum(of > 0 for of in trials)
    return wilson(share * effective, effective)


def of_mean(values: list[float]) -> tuple[float, float]:
    """Normal interval of a mean of independent values, 95 %."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, mean
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(variance / len(values))
    return mean - half, mean + half


def binomial_tail(successes: int, trials: int, share: float) -> float:
    """The probability of at least so many successes."""
    if successes <= 0:
        return 1.0
    if share in (0.0, 1.0):
        return share
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(share) + (trials - k) * math.log1p(-share)
        for k in range(successes, trials + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934), 95 %; (0, 1) of no trials."""

    def solve(successes: int, level: float) -> float:
        """The share at which so many successes or more have this probability; it grows with the share."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if binomial_tail(successes, trials, middle) < level else (low, middle)
        return (low + high) / 2

    if trials == 0:
        return 0.0, 1.0
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if successes == 0 else solve(successes, tail)
    return low, (1.0 if successes == trials else solve(successes + 1, 1 - tail))


def mcnemar(only_first: int, only_second: int, items: int) -> dict:
    """The exact test of two models on the same items (McNemar 1947), and the interval that belongs to it.

    Args:
        only_first, only_second: items that only the one or only the other model has right. The rest says nothing.
        items: all items.

    Returns:
        `difference` (second minus first, as a share of all items), its 95 % interval `low`, `high` (Clopper and
        Pearson's of the share of `only_second` among the items that differ), and the two-sided `p`.
    """
    differing = only_first + only_second
    tail = binomial_tail(max(only_first, only_second), differing, 0.5) if differing else 1.0
    low, high = clopper_pearson(only_second, differing)
    scale = differing / items
    return {
        "difference": (only_second - only_first) / items,
        "low": (2 * low - 1) * scale + 0.0,  # never -0
        "high": (2 * high - 1) * scale,
        "p": min(1.0, 2 * tail),
    }
