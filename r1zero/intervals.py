"""95 % confidence intervals of shares and means, and the paired test of two models on the same items."""

import math

from scipy import stats

CONFIDENCE = 0.95
Z = stats.norm.ppf((1 + CONFIDENCE) / 2)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); (0, 1) for no trials."""
    return tuple(stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, "wilson")) if trials else (0.0, 1.0)


def exact(successes: int, trials: int) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934); (0, 1) for no trials."""
    return tuple(stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, "exact")) if trials else (0.0, 1.0)


def of_share_in_groups(successes: list[int], trials: list[int]) -> tuple[float, float]:
    """Interval of a share whose trials come in groups of similar ones, such as the completions of one prompt.

    Wilson's interval with the effective number of trials (Korn and Graubard 1998): as many independent trials as would
    vary like these groups, or the number of groups if nothing varies. One entry per group, which may have no trials.
    """
    if not (total := sum(trials)):
        return 0.0, 1.0
    share = sum(successes) / total
    variance = sum((right - share * of) ** 2 for right, of in zip(successes, trials, strict=True)) / total**2
    effective = share * (1 - share) / variance if variance else sum(trial > 0 for trial in trials)
    # scipy's Wilson interval wants whole numbers, and an effective number of trials is not one.
    centre = (share + Z * Z / (2 * effective)) / (1 + Z * Z / effective)
    half = Z / (1 + Z * Z / effective) * math.sqrt(share * (1 - share) / effective + Z * Z / (4 * effective**2))
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def of_mean(values: list[float]) -> tuple[float, float]:
    """Normal interval of the mean of independent values; the mean itself, twice, for a single value."""
    mean = math.fsum(values) / len(values)
    half = Z * stats.sem(values) if len(values) > 1 else 0.0
    return float(mean - half), float(mean + half)


def mcnemar(only_first: int, only_second: int, items: int) -> dict:
    """Exact test of two models on the same items (McNemar 1947), with the interval that belongs to it.

    Takes how many of the `items` only the first and only the second model answers correctly. Returns `difference`
    (second minus first, as a share of all items), its interval `low` and `high` (the exact interval of the share of
    `only_second` among the items that differ), and the two-sided `p`.
    """
    differing = only_first + only_second
    low, high = ((2 * bound - 1) * differing / items + 0.0 for bound in exact(only_second, differing))  # no -0.0
    p = float(stats.binomtest(only_second, differing).pvalue) if differing else 1.0
    return {"difference": (only_second - only_first) / items, "low": low, "high": high, "p": p}
