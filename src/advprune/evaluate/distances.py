"""Two models' distances (`robust.union`) on the same images, compared."""

from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np

from advprune.evaluate.compare import Compared, compare_hits, void_by
from advprune.evaluate.statistics import NORMAL, median_distance

HALVINGS = 60  # of the range of differences: to the last digits


@dataclass(frozen=True, eq=False)
class DistanceComparison(Compared):
    """Distances of one model against another's, by `compare_distances`: medians with their 95 %
    bootstrap intervals; p of Wilcoxon's signed-rank test, zeros by Pratt's rule, with all shifts
    that it does not reject."""

    first: tuple[float, float, float]
    second: tuple[float, float, float]


def shift(changes: np.ndarray, wanted: float = 0.0) -> float:
    """By how much changes `[n]` are shifted where the test's statistic, which falls with the shift,
    passes `wanted`; at 0 the estimate of Hodges and Lehmann. Infinite where none does."""
    finite = changes[np.isfinite(changes)]
    if not len(finite):
        return float(np.median(changes)) if wanted == 0 else -np.sign(wanted) * inf
    low, high = float(finite.min()), float(finite.max())
    if _statistic(changes - low) < wanted:
        return -inf
    if _statistic(changes - high) > wanted:
        return inf
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _statistic(changes - middle) > wanted:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 12) + 0.0  # of float32: what is less is no shift


def _statistic(changes: np.ndarray) -> float:
    """Wilcoxon's sum of signed ranks over its standard deviation, zeros by Pratt's rule."""
    from scipy.stats import rankdata  # half a second, which stages that only record save

    ranks = rankdata(np.abs(changes)) * np.sign(changes)
    return float(ranks.sum() / np.sqrt(np.square(ranks).sum())) if ranks.any() else 0.0


def compare_distances(first: np.ndarray, second: np.ndarray) -> DistanceComparison:
    """Compare distances `[n]` of two models on the same images, in the same order; n >= 1.
    ValueError where the numbers of images differ."""
    from scipy.stats import wilcoxon

    own, other = (np.asarray(one, dtype=float) for one in (first, second))
    void = void_by(compare_hits(own > 0, other > 0))
    with np.errstate(invalid="ignore"):
        changes = np.where(np.isinf(own) & np.isinf(other), 0.0, own - other)
    p = float(wilcoxon(changes, zero_method="pratt").pvalue) if changes.any() else 1.0

    def ends_at(alpha: float) -> tuple[float, float]:
        critical = NORMAL.inv_cdf(1 - alpha / 2)
        return shift(changes, critical), shift(changes, -critical)

    return DistanceComparison(
        *(median_distance(own), median_distance(other)),
        p=p,
        direction=_statistic(changes),
        difference=shift(changes),
        ends_at=cache(ends_at),
        void=void,
    )
