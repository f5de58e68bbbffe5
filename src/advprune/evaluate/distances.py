"""Two models' distances (`robust.union`) on the same images, compared."""

from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from advprune.evaluate.compare import Compared, compare_hits, void_by
from advprune.evaluate.statistics import median_distance

HALVINGS = 60  # of the range of differences: to the last digits


@dataclass(frozen=True, eq=False)
class DistanceComparison(Compared):
    """Distances of one model against another's, by `compare_distances`.

    first, second: the median and its 95 % bootstrap interval. changes: the differences image by
    image, `[n]`, 0 where neither distance is finite. p: of Wilcoxon's signed-rank test, zeros by
    Pratt's rule.
    """

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    changes: np.ndarray

    @cached_property
    def difference(self) -> float:
        """The shift that takes the sum of signed ranks to 0 (Hodges and Lehmann)."""
        return self._shift(0.0)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """All shifts that the test does not reject."""
        return self._shift(self.critical), self._shift(-self.critical)

    def _shift(self, wanted: float) -> float:
        """The shift at which the statistic, which falls with it, passes `wanted`; by bisection."""
        finite = self.changes[np.isfinite(self.changes)]
        if not len(finite):
            return float(np.median(self.changes)) if wanted == 0 else -np.sign(wanted) * inf
        low, high = float(finite.min()), float(finite.max())
        if _statistic(self.changes - low) < wanted:
            return -inf
        if _statistic(self.changes - high) > wanted:
            return inf
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if _statistic(self.changes - middle) > wanted:
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
    medians = median_distance(own), median_distance(other)
    return DistanceComparison(*medians, changes, p=p, direction=_statistic(changes), void=void)
