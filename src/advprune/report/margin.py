"""The gate's margin and floor: a loss must be ruled out, by one-sided bounds.

A test that finds no drop does not show that there is none: many small ones pass one after another.
All models have to pass, so each is tested at the whole level alpha (an intersection-union test:
Berger, Technometrics, 1982).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from advprune.evaluate.statistics import Rate, difference_interval

SIZES = [round(1.05**k) for k in range(1, 300)]  # numbers of images, up to two millions


@dataclass(frozen=True)
class Rules:
    """What may be merged. alpha: the level of all tests together, and of each bound. margin: the
    loss to be ruled out, a fraction of accuracies and of distances. floors: the least robust
    accuracy by model, of all others under "". allow: what may fall or change, by name."""

    alpha: float = 0.05
    margin: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)
    allow: Collection[str] = ()


def least(rate: Rate, alpha: float) -> float:
    """Wilson's one-sided lower bound of a rate."""
    from scipy.stats import binomtest

    test = binomtest(rate.hits, rate.n, alternative="greater")
    return float(test.proportion_ci(1 - alpha, "wilson").low)


def loss(lost: int, gained: int, n: int, margin: float, alpha: float) -> str:
    """Why it is not ruled out that an accuracy fell by `margin` or more; empty where it is.

    Of the same n images, `lost` were right before alone and `gained` are right after alone; Tango's
    score bound of the paired difference.
    """
    worst = -difference_interval(gained, lost, n, 2 * alpha)[0]
    if worst < margin:
        return ""
    shares = gained / n, lost / n
    inside = (
        size
        for size in SIZES
        if difference_interval(*(s * size for s in shares), size, 2 * alpha)[0] > -margin
    )
    needed = next(inside, None) if lost - gained < margin * n else None
    return (
        f"{lost} images lost and {gained} gained of {n}: a loss of {100 * worst:.1f} points is not "
        f"ruled out, {100 * margin:g} are allowed"
        + (f"; about {needed:,} images would decide" if needed else "")
    )


def nearer(before: np.ndarray, after: np.ndarray, margin: float) -> float:
    """One-sided p that the distances `[n]` of the same images fell by the share `margin` or more
    (Wilcoxon's signed-rank test, zeros by Pratt's rule)."""
    from scipy.stats import wilcoxon

    old, new = (1 - margin) * before.astype(float), after.astype(float)
    with np.errstate(invalid="ignore"):
        changes = np.where(np.isinf(old) & np.isinf(new), 0.0, new - old)
    if not changes.any():
        return 0.0  # each image is misclassified in both, or fooled in neither
    return float(wilcoxon(changes, zero_method="pratt", alternative="greater").pvalue)
