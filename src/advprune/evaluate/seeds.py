"""What the study of seeds found: pure functions of its records.

A point is a family at one setting, trained once for each seed. Points are compared on the same
images and dense networks: the differences are paired in both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from advprune.core.params import FROM_DENSE
from advprune.evaluate.compare import void_by
from advprune.evaluate.means import Mean, MeanComparison, compare_means, mean
from advprune.evaluate.measures import right
from advprune.evaluate.robust import union

DENSE = "dense"  # the point without compression
# Families that learn which weights remain, and their controls.
CONTROLS = {"HYDRA": ("LWM",), "AWT": ("magnitude_ticket", "random_ticket")}
Side = Literal["clean", "robust", "area", "transfer"]


@dataclass(frozen=True, eq=False)
class SeededPoint:
    """A point of the study: which images its networks have right, `[S, n]`, one row per seed.

    zeros: share of all weights and biases that is zero, the mean over seeds. area: distances as
    parts of twice the main attack's budget, at most 1; their mean is the area under the security
    curve. doubt: why its robust accuracy and area are upper bounds only.
    """

    name: str
    family: str
    setting: dict[str, Any]
    zeros: float
    clean: np.ndarray
    robust: np.ndarray
    area: np.ndarray
    transfer: np.ndarray
    doubt: str = ""

    @property
    def sparsity(self) -> float | None:
        """The share of weights removed, as set; 0 of the dense network, None where not set."""
        return 0.0 if self.family == DENSE else self.setting.get("sparsity")

    @property
    def is_tuned(self) -> bool:
        """Whether weights were trained after pruning, or nothing was pruned."""
        return self.family == DENSE or any(self.setting.get(key) for key in ("finetune", "train"))

    def mean(self, side: Side) -> Mean:
        """Mean accuracy over seeds and images."""
        return mean(getattr(self, side))

    def against(self, other: "SeededPoint", side: Side, margin: float) -> MeanComparison:
        """Paired with another point by seed and image."""
        return compare_means(getattr(self, side), getattr(other, side), margin)


def seeded_points(
    records: pd.DataFrame, settings: Mapping[str, Any], norm: str, eps: float
) -> list[SeededPoint]:
    """The dense networks, then the points of a study that have records, in the order of `settings`.

    norm, eps: of the union of all attacks on the network itself, without the images of the dense
    networks, which are tried on the points alone.
    """
    found = []
    tried = records.attack[records.attack.str.startswith(FROM_DENSE)].iloc[:1].tolist()
    for key, setting in ({DENSE: None} | dict(settings)).items():
        if len(own := records[records.point == key].sort_values("index")):
            by_seed = own.groupby("seed", sort=True)
            made_here = own[~own.attack.str.startswith(FROM_DENSE)].groupby("seed", sort=True)
            whole = [union(one, [], norm, eps) for _, one in made_here]
            clean = [right(one, "clean") for one in whole]
            area = np.stack([one.distance for one in whole]).clip(0, 2 * eps) / (2 * eps)
            names = [name.removeprefix(FROM_DENSE) if key == DENSE else name for name in tried]
            there = [right(one[one.attack == name]) for _, one in by_seed for name in names]
            tables = (
                np.stack(clean),
                np.stack([right(one) for one in whole]),
                area,
                np.array(there),
            )
            zeros = float(by_seed.sparsity.first().mean())
            # A bare number is a sparsity.
            chosen = setting if isinstance(setting, dict) else {"sparsity": setting}
            known = {} if setting is None else chosen
            found.append(SeededPoint(key, own.family.iloc[0], known, zeros, *tables))
    return found


def guarded(
    one: SeededPoint, other: SeededPoint, side: Side, margin: float, classes: int
) -> MeanComparison:
    """One point against another, void where the first's clean accuracy is at chance (its interval
    reaches down to guessing) or significantly lower. side: robust or area."""
    guesses = one.mean("clean").interval[0] <= 1 / classes
    void = void_by(one.against(other, "clean", margin), guesses)
    bounds = bool(one.doubt), bool(other.doubt)
    return replace(one.against(other, side, margin), void=void, bounds=bounds)


def controls_of(points: list[SeededPoint], one: SeededPoint) -> list[SeededPoint]:
    """Controls of a learned mask: of the same sparsity, trained afterwards like it; where no weight
    is trained, the dense network, and the same family with nothing pruned."""
    if one.family not in CONTROLS or not one.sparsity:
        return []
    if not one.is_tuned:
        alike = [p for p in points if p.family == one.family and not p.is_tuned]
        return [points[0], *(whole for whole in alike if whole.sparsity == 0)]
    others = [p for p in points if p.family in CONTROLS[one.family] and p.is_tuned]
    return [p for p in others if p.sparsity == one.sparsity]
