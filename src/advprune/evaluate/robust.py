"""What everything that attacked a model found, image by image: robust accuracy and distances.

An image is robust at a budget only if nothing inside it fools the model: the suite, the probes, the
curves, the published schedules, and images that were crafted on other models.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from advprune.core.profile import FROZEN
from advprune.evaluate.measures import right

ROUNDING = 1e-6  # of float32, in pixels of [0, 1]: far less than a grey level
SIZES = {"Linf": "linf", "L2": "l2"}


def union(
    records: pd.DataFrame, transfers: Iterable[pd.DataFrame], norm: str, eps: float
) -> pd.DataFrame:
    """One row per image in order: the row that does most harm within the budget, and `distance`.

    records: every row of a model. transfers: its answers to images of other models. A row belongs
    to a budget by the size of its change. `distance`: the smallest change found that fools the
    model (units of the pixel range, in `norm`), by the minimum-norm search or any other row; 0
    where the clean image is misclassified, infinite where nothing was found. An image is robust at
    `eps` exactly if its distance is larger. forwards and gradients: what all attacks cost together,
    per image. Of a model that draws at random, the worst row is chosen by `chosen_margin`, and
    `adv_pred`, of other draws, says whether it fools; a distance fools in both sets of draws.
    """
    size = SIZES[norm]
    own = records[records.attack != FROZEN]  # those rows are of another network
    rows = pd.concat([own, *transfers], ignore_index=True)
    worst = worst_rows(rows[rows[size] <= eps + ROUNDING])
    nearest = rows.groupby("index").distance.min().reindex(worst["index"]).fillna(np.inf)
    fools = rows[(rows.adv_pred != rows.label) & (rows.chosen_margin <= 0)]
    others = fools.groupby("index")[size].min().reindex(worst["index"], fill_value=np.inf)
    distance = np.minimum(nearest.to_numpy(), others.to_numpy())
    distance[~right(worst, "clean")] = 0.0
    # The minimum-norm search finds images of floats; at the budget, those of 8 bits decide.
    is_robust = right(worst)
    beyond = np.nextafter(eps + ROUNDING, 1)
    distance = np.where(is_robust, np.maximum(distance, beyond), np.minimum(distance, eps))
    cost = records.groupby("index")[["forwards", "gradients"]].sum().reset_index(drop=True)
    return worst.assign(distance=distance, forwards=cost.forwards, gradients=cost.gradients)


def worst_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Per image in order, the row that leaves the smallest margin in draws of its own: those that
    score it would call the luck of a draw a worst case."""
    rows = rows.reset_index(drop=True)
    chosen = rows.loc[rows.groupby("index").chosen_margin.idxmin()]
    return chosen.sort_values("index", ignore_index=True)


def area(distances: np.ndarray, up_to: float) -> float:
    """Mean accuracy over all budgets from 0 to `up_to`: the area under the security curve."""
    return float(np.clip(distances, 0, up_to).mean() / up_to)
