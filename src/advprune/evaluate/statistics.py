"""Uncertainty: 95 % intervals for rates, and the paired test for two models on the same images."""

from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95


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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
