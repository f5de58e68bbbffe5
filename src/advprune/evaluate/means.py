"""Means over seeds and images, with an interval that covers both, and their comparison.

S networks, trained alike but for the seed, on the same n images: a crossed table `[S, n]` of two
random effects (Gallas, One-shot estimate of MRMC variance, 2006).
"""

from dataclasses import dataclass, replace
from math import inf, sqrt

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from advprune.evaluate.compare import MARGIN, Compared, right
from advprune.evaluate.measures import calibration_error
from advprune.evaluate.statistics import ALPHA, NORMAL, POWER, difference_interval

RESAMPLES = 1000  # of the bootstrap of calibration errors
NO_SPREAD = 1e-12  # a standard error that is rounding alone


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and images.

    deviation: standard deviation of the seeds' means, None for a single seed. error: standard error
    of the mean, infinite for a single value. freedom: degrees of freedom of its t distribution.
    """

    value: float
    deviation: float | None
    error: float
    freedom: float
    seeds: int
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: `value -+ t error`."""
        return self.interval_at(ALPHA)

    def interval_at(self, alpha: float) -> tuple[float, float]:
        """The interval at the level `1 - alpha`."""
        reach = float(stdtrit(self.freedom, 1 - alpha / 2)) * self.error
        return self.value - reach, self.value + reach

    @property
    def agree(self) -> bool:
        """Whether all seeds and images have the same value: without spread, t says nothing."""
        return self.error < NO_SPREAD

    @property
    def p(self) -> float:
        """Two-sided, that the mean is 0: by t, by the sign test where all values are the same."""
        if self.agree:
            return 0.5 ** (max(self.seeds, self.images) - 1) if self.value else 1.0
        return 2 * float(stdtr(self.freedom, -abs(self.value) / self.error))


@dataclass(frozen=True, eq=False)
class MeanComparison(Compared):
    """A mean difference, tested by t."""

    mean: Mean


def against_zero(difference: Mean, margin: float) -> MeanComparison:
    """The test of a mean difference; what is detectable is so at its standard error."""
    return MeanComparison(
        difference,
        p=difference.p,
        direction=difference.value,
        difference=difference.value,
        ends_at=difference.interval_at,
        detectable_at=lambda alpha: _steps(difference.freedom, alpha) * difference.error,
        margin=margin,
    )


def of_rates(test: MeanComparison, found: Mean) -> MeanComparison:
    """A test of shares of images, which vary in a known way and differ by 1 at most."""

    def ends_at(alpha: float) -> tuple[float, float]:
        if found.agree and not found.value:  # Tango's interval: no network gains or loses an image
            return difference_interval(0, 0, found.images, alpha)
        low, high = found.interval_at(alpha)
        return max(low, -1.0), min(high, 1.0)

    def detectable_at(alpha: float) -> float:
        seen = _steps(found.freedom, alpha) * found.error
        if found.images > 1:  # at least the error that such a difference has over images alone
            seen = max(seen, smallest_mean_difference(found.images, alpha, found.freedom))
        return inf if seen > 1 else seen

    return replace(test, mean=found, ends_at=ends_at, detectable_at=detectable_at)


def smallest_mean_difference(images: int, alpha: float, freedom: float | None = None) -> float:
    """The difference d that is shown in 80 % of all cases if all seeds agree and no image is lost.

    Its variance over n images is d (1 - d) / n, and it is k standard errors: `k^2 / (n + k^2)`.
    """
    square = _steps(images - 1.0 if freedom is None else freedom, alpha) ** 2
    return square / (images + square)


def _steps(freedom: float, alpha: float) -> float:
    """How many standard errors are shown at `alpha` in 80 % of all cases."""
    return float(stdtrit(freedom, 1 - alpha / 2)) + float(stdtrit(freedom, POWER))


def compare_means(first: np.ndarray, second: np.ndarray, margin: float = MARGIN) -> MeanComparison:
    """Compare tables `[S, n]` of which networks are right on which images: paired in both."""
    found = mean(np.asarray(first, dtype=float) - second)
    # A difference of `margin` has at least this error: where none was seen, it is not zero.
    error = max(found.error, _least_error(margin, found.images))
    known = replace(found, error=error) if found.agree and found.value else found
    same = float(stdtr(found.freedom, (abs(found.value) - margin) / error))
    return replace(of_rates(against_zero(found, margin), known), p_equivalent=same)


def compare_calibration(first: pd.DataFrame, second: pd.DataFrame, margin: float) -> MeanComparison:
    """Calibration errors under attack on the same images; standard error by the bootstrap."""
    sides = [(table.adv_confidence.to_numpy(), right(table)) for table in (first, second)]
    random, n = np.random.default_rng(0), len(first)

    def difference(rows: np.ndarray) -> float:
        own, other = (calibration_error(sure[rows], hits[rows]) for sure, hits in sides)
        return own - other

    value = difference(np.arange(n))
    drawn = [difference(random.integers(n, size=n)) for _ in range(RESAMPLES)]
    found = Mean(value, None, float(np.std(drawn, ddof=1)), inf, 1, n)
    error = _least_error(margin, n) if found.agree else found.error
    same = 1 - NORMAL.cdf((margin - abs(value)) / error)
    return replace(of_rates(against_zero(found, margin), found), p_equivalent=same)


def mean(values: np.ndarray) -> Mean:
    """The mean of a table `[S, n]` of seeds and images; of differences, where paired.

    Two-way random effects: with the mean squares of seeds (a), images (b) and their interaction
    (c), `(a + b - c) / (S n)` estimates Var(mean) without bias; c is not taken off, which is on the
    safe side. Degrees of freedom by Satterthwaite: `(a + b)^2 / (a^2 / (S - 1) + b^2 / (n - 1))`.
    """
    table = np.asarray(values, dtype=float)
    seeds, images = table.shape
    by_seed, by_image, whole = table.mean(1), table.mean(0), float(table.mean())
    a = images * _variance(by_seed)
    b = seeds * _variance(by_image)
    below = sum(square**2 / (count - 1) for square, count in ((a, seeds), (b, images)) if count > 1)
    freedom = (a + b) ** 2 / below if below else inf
    deviation = sqrt(_variance(by_seed)) if seeds > 1 else None
    error = inf if table.size == 1 else sqrt((a + b) / table.size)
    return Mean(whole, deviation, error, freedom, seeds, images)


def _least_error(margin: float, images: int) -> float:
    """Standard error of a difference of `margin` over images, if none is lost."""
    return sqrt(margin * (1 - margin) / images)


def _variance(means: np.ndarray) -> float:
    """Unbiased; 0 of a single one."""
    return float(means.var(ddof=1)) if len(means) > 1 else 0.0
