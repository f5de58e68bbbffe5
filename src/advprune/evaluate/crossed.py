"""Accuracy over seeds and images: a mean with an interval that holds for others of both.

Each of S networks, trained alike but for the seed, is right or wrong on the same n images. The
values `v[s, i]` are a crossed table with two random effects, as in studies of several readers on
the same cases (Gallas, One-shot estimate of MRMC variance, 2006). A Wilson interval over images
would hold for these very networks alone, a t interval over seeds for these very images.
"""

from dataclasses import dataclass
from functools import cache
from math import inf, sqrt

import numpy as np

from advprune.evaluate.statistics import LEVEL


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and images, with its 95 % interval.

    deviation: standard deviation of the seeds' own means, None for a single seed. error: standard
    error of the mean. freedom: degrees of freedom of its t distribution.
    """

    value: float
    deviation: float | None
    error: float
    freedom: float
    seeds: int
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """`value -+ t error`."""
        reach = _quantile(self.freedom) * self.error
        return self.value - reach, self.value + reach

    @property
    def p(self) -> float:
        """Two-sided p-value of the hypothesis that the mean is 0."""
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return _tail(abs(self.value) / self.error, self.freedom)


def mean(values: np.ndarray) -> Mean:
    """The mean of a table `[S, n]`: rows are seeds, columns images; of differences, where paired.

    Two-way random effects without repetition: with the mean squares of seeds (a), images (b) and
    their interaction (c), `Var(mean) = (a + b - c) / (S n)` without bias. It may come out below
    what seeds or images alone account for, so the largest of `a + b - c`, a and b is taken. Degrees
    of freedom by Satterthwaite; of a alone S - 1, of b alone n - 1. A single seed leaves the
    images, a single image the seeds.
    """
    table = np.asarray(values, dtype=float)
    seeds, images = table.shape
    by_seed, by_image, whole = table.mean(1), table.mean(0), table.mean()
    a = images * _square(by_seed - whole, seeds - 1)
    b = seeds * _square(by_image - whole, images - 1)
    rest = table - by_seed[:, None] - by_image[None, :] + whole
    c = _square(rest, (seeds - 1) * (images - 1))
    parts = [(a, seeds - 1), (b, images - 1), (c, (seeds - 1) * (images - 1))]
    below = sum(square**2 / freedom for square, freedom in parts if freedom)
    joint = (a + b - c, (a + b - c) ** 2 / below if below else inf)
    square, freedom = max(joint, *parts[:2])
    error = sqrt(max(square, 0.0) / (seeds * images))
    deviation = float(by_seed.std(ddof=1)) if seeds > 1 else None
    return Mean(float(whole), deviation, error, max(freedom, 1.0), seeds, images)


def _square(residuals: np.ndarray, freedom: int) -> float:
    """A mean square; 0 where nothing varies freely."""
    return float(np.sum(residuals**2)) / freedom if freedom else 0.0


@cache
def _quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))


@cache
def _tail(statistic: float, freedom: float) -> float:
    from scipy.stats import t

    return float(2 * t.sf(statistic, freedom))
