"""Accuracy over seeds and images: a mean with an interval that covers both.

Each of S networks, trained alike but for the seed, is right or wrong on the same n images. The
values `v[s, i]` are a crossed table with two random effects, as in studies of several readers on
the same cases (Gallas, One-shot estimate of MRMC variance, 2006). A Wilson interval over images
would hold for these networks only, a t interval over seeds for these images only.
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
    their interaction (c), `(a + b - c) / (S n)` estimates Var(mean) without bias. Here c is not
    taken off, which is on the safe side and never below what seeds or images account for alone.
    Degrees of freedom by Satterthwaite, `(a + b)^2 / (a^2 / (S - 1) + b^2 / (n - 1))`. A single
    seed leaves the images, a single image the seeds.
    """
    table = np.asarray(values, dtype=float)
    seeds, images = table.shape
    by_seed, by_image, whole = table.mean(1), table.mean(0), float(table.mean())
    a = images * _variance(by_seed)
    b = seeds * _variance(by_image)
    below = sum(square**2 / (count - 1) for square, count in ((a, seeds), (b, images)) if count > 1)
    freedom = (a + b) ** 2 / below if below else inf
    deviation = sqrt(_variance(by_seed)) if seeds > 1 else None
    return Mean(whole, deviation, sqrt((a + b) / (seeds * images)), freedom, seeds, images)


def _variance(means: np.ndarray) -> float:
    """Unbiased; 0 of a single one."""
    return float(means.var(ddof=1)) if len(means) > 1 else 0.0


@cache
def _quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))


@cache
def _tail(statistic: float, freedom: float) -> float:
    from scipy.stats import t

    return float(2 * t.sf(statistic, freedom))
