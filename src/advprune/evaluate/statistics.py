"""Uncertainty of one model's rates and distances, and exact tests on the same images."""

from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 10_000  # of the bootstrap


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
        return _wilson(self.hits, self.n) if self.n else (None, None)

    def columns(self, name: str) -> dict[str, float | None]:
        """`name`, `name_low` and `name_high`, rounded to 6 places."""
        low, high = self.interval
        return {
            name: _rounded(self.value),
            f"{name}_low": _rounded(low),
            f"{name}_high": _rounded(high),
        }


@cache
def _wilson(hits: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest  # half a second, which stages that only record save

    found = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def rate(hits: np.ndarray) -> Rate:
    """The rate of True in a boolean array."""
    return Rate(int(np.sum(hits)), len(hits))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided McNemar p-value for two boolean arrays over the same images.

    Under the null hypothesis, images on which just one model is right fall on either side alike.
    """
    if len(first) != len(second):
        raise ValueError(f"mcnemar: {len(first)} and {len(second)} images are not the same images")
    return _sign_test(int(np.sum(first & ~second)), int(np.sum(second & ~first)))


@cache
def _sign_test(one: int, other: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(one, one + other, 0.5).pvalue) if one + other else 1.0


def median_distance(values: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """The median of distances `[n]`, n >= 1, and its percentile bootstrap interval.

    Infinite distances are larger than any. The middle of n values drawn with replacement is
    `x_(ceil(n u))` of the sorted ones, where u, the middle of n uniform numbers, has a beta
    distribution: so resampled medians are drawn as they are, without the samples.
    """
    ordered, n = np.sort(np.asarray(values, dtype=float)), len(values)
    if n == 0:
        raise ValueError("median_distance: there are no distances")
    random, lower = np.random.default_rng(0), (n + 1) // 2  # the lower of the two in the middle
    first = random.beta(lower, n - lower + 1, RESAMPLES)
    second = first if n % 2 else first + (1 - first) * random.beta(1, n - lower, RESAMPLES)
    places = (np.ceil(n * np.stack([first, second])).astype(int) - 1).clip(0, n - 1)
    medians, tail = ordered[places].mean(0), (1 - level) / 2
    low, high = (float(np.quantile(medians, q, method="inverted_cdf")) for q in (tail, 1 - tail))
    return float(np.median(ordered)), low, high


def consistent(ends: tuple[float, float], difference: float, p: float) -> tuple[float, float]:
    """An interval of a difference that does not contradict the p-value beside it.

    Intervals hold at `ALPHA / tests`. Holm's step-down p may show a difference that this level does
    not: then the end beyond 0 becomes 0. An exact p may not show one that this level does: then 0
    is taken in. Either way the interval covers no less.
    """
    low, high = ends
    if p >= ALPHA:
        return min(low, 0.0), max(high, 0.0)
    return (max(low, 0.0), high) if difference > 0 else (low, min(high, 0.0))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
