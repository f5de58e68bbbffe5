"""Uncertainty of rates and distances, and exact tests, intervals and power for pairs of rates.

gained, lost: on how many of n images the first model alone, or the second alone, is right.
"""

from dataclasses import dataclass
from functools import cache
from math import copysign, inf, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 10_000  # of the bootstrap
NORMAL = NormalDist()


@dataclass(frozen=True)
class Rate:
    """`hits` of `n`, with its 95 % Wilson interval. No images: value and interval are None."""

    hits: int
    n: int

    @property
    def value(self) -> float | None:
        """hits / n."""
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """Wilson's score interval."""
        if not self.n:
            return None, None
        found = _binomial(self.hits, self.n).proportion_ci(LEVEL, method="wilson")
        return float(found.low), float(found.high)

    def columns(self, name: str) -> dict[str, float | None]:
        """`name`, `name_low` and `name_high`, rounded to 6 places."""
        return with_ends(name, (self.value, *self.interval), 6)


def with_ends(name: str, values: tuple[float | None, ...], places: int) -> dict[str, float | None]:
    """A value and its interval as columns `name`, `name_low` and `name_high`, rounded."""
    pairs = zip((name, f"{name}_low", f"{name}_high"), values, strict=True)
    return {key: None if value is None else round(value, places) for key, value in pairs}


@cache
def _binomial(hits: int, n: int) -> Any:
    """scipy's two-sided test of the share 1/2."""
    from scipy.stats import binomtest  # half a second, which stages that only record save

    return binomtest(hits, n)


def rate(hits: np.ndarray) -> Rate:
    """The rate of True in a boolean array."""
    return Rate(int(np.sum(hits)), len(hits))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value."""
    return float(_binomial(gained, gained + lost).pvalue) if gained + lost else 1.0


def _score(gained: int, lost: int, n: int, difference: float) -> float:
    """Tango's score statistic of a hypothetical difference; falls as that rises. `share`, the most
    likely rate of images that the second alone has right, solves a quadratic equation."""
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    share = (sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * share + difference * (1 - difference))
    away = gained - lost - n * difference
    return away / sqrt(variance) if variance > 1e-12 else copysign(inf, away) if away else 0.0


@cache
def difference_interval(gained: int, lost: int, n: int, alpha: float) -> tuple[float, float]:
    """The differences that the score test does not reject at `alpha`.

    Tango, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design (Statistics in Medicine, 1998).
    """
    from scipy.optimize import brentq

    if not n:
        return -1.0, 1.0
    critical, middle = NORMAL.inv_cdf(1 - alpha / 2), (gained - lost) / n
    ends = []
    for edge, wanted in ((-1.0, critical), (1.0, -critical)):

        def excess(difference: float, wanted: float = wanted) -> float:
            return float(np.clip(_score(gained, lost, n, difference) - wanted, -99, 99))

        beyond = middle == edge or excess(edge) * excess(middle) >= 0
        ends.append(edge if beyond else float(brentq(excess, edge, middle, xtol=1e-9)))
    return ends[0], ends[1]


def equivalence(gained: int, lost: int, n: int, margin: float) -> float:
    """p of two one-sided score tests that the difference is at most `margin` either way (TOST)."""
    below = NORMAL.cdf(_score(gained, lost, n, margin))
    return max(below, 1 - NORMAL.cdf(_score(gained, lost, n, -margin)))


@cache
def smallest_difference(discordant: int, n: int, alpha: float) -> float:
    """The difference that McNemar's exact test at `alpha` shows on n images in 80 % of all cases;
    infinite for too small n. discordant: on how many images just one model is right, if the
    difference does not need more; their number and the first model's part in them are binomial."""
    from scipy.optimize import brentq
    from scipy.stats import binom

    counts = np.arange(n + 1)
    needed = binom.isf(alpha / 2, counts, 0.5)  # more than this many are significant

    def excess(difference: float) -> float:
        share = max(discordant / n, difference)
        shown = binom.sf(needed, counts, (1 + difference / share) / 2)
        return float(binom.pmf(counts, n, share) @ shown) - POWER

    return float(brentq(excess, 1e-9, 1.0, xtol=1e-6)) if n and excess(1.0) > 0 else inf


def consistent(ends: tuple[float, float], difference: float, p: float) -> tuple[float, float]:
    """An interval that does not contradict the p-value beside it: where Holm's step-down p shows a
    difference that the interval at `ALPHA / tests` does not, its end beyond 0 becomes 0; where an
    exact p does not show one, 0 is taken in."""
    low, high = ends
    if p >= ALPHA:
        return min(low, 0.0), max(high, 0.0)
    return (max(low, 0.0), high) if difference > 0 else (low, min(high, 0.0))


def median_distance(values: np.ndarray) -> tuple[float, float, float]:
    """The median of distances `[n]`, n >= 1, and its 95 % percentile bootstrap interval: the middle
    of n values drawn with replacement is `x_(ceil(n u))` of the sorted ones, u beta distributed."""
    ordered, n = np.sort(np.asarray(values, dtype=float)), len(values)
    if n == 0:
        raise ValueError("median_distance: there are no distances")
    random, lower = np.random.default_rng(0), (n + 1) // 2  # the lower of the two in the middle
    first = random.beta(lower, n - lower + 1, RESAMPLES)
    second = first if n % 2 else first + (1 - first) * random.beta(1, n - lower, RESAMPLES)
    places = (np.ceil(n * np.stack([first, second])).astype(int) - 1).clip(0, n - 1)
    medians, tail = ordered[places].mean(0), (1 - LEVEL) / 2
    low, high = (float(np.quantile(medians, q, method="inverted_cdf")) for q in (tail, 1 - tail))
    return float(np.median(ordered)), low, high
