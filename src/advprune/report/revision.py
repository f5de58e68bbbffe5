"""One revision's results, image by image, as the gate compares them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from advprune.core.errors import UserError
from advprune.evaluate.statistics import Rate, rate
from advprune.report.formats import kind_of
from advprune.report.results import ATTACK, DISTANCE
from advprune.report.run import NOT_RUN


@dataclass(frozen=True, eq=False)
class ModelResult:
    """A model in one revision, image by image.

    robust: bool `[n]`, whether no attack fools the model; distances: `[n]`, 0 where the clean image
    is misclassified. images: fingerprint of the test images. attacks: those that were run on the
    model. budget: the main attack, its norm and eps.
    """

    robust: np.ndarray
    distances: np.ndarray
    clean: float
    verdict: str | None
    images: str
    attacks: frozenset[str] = frozenset()
    budget: tuple[Any, ...] = ()

    @property
    def rate(self) -> Rate:
        """Robust accuracy."""
        return rate(self.robust)

    @property
    def distance(self) -> str:
        """The median distance."""
        return kind_of("median_distance").text(np.median(self.distances.astype(float)))


@dataclass(frozen=True)
class Revision:
    """One revision: results by model, settings of data and attacks (None: unknown), the norm of
    budget and distances."""

    results: dict[str, ModelResult]
    settings: Any = None
    norm: str = "Linf"


def revision_of(table: pd.DataFrame, settings: Any = None) -> Revision:
    """A revision from its results (`results`, `read_results`), without models that were not run."""
    found, tried = {}, table.columns[table.columns.str.startswith(ATTACK)]
    for row in table[table.verdict != NOT_RUN].to_dict("records"):
        robust = np.array(list(row["robust_images"])) == "1"
        distances = np.frombuffer(bytes.fromhex(row["image_distances"]), DISTANCE)
        if not (distances >= 0).all():
            raise UserError(f"{row['model']}: a distance is negative or no number; run `dvc repro`")
        attacks = frozenset(name for name in tried if pd.notna(row[name]))
        facts = row["clean_accuracy"], row["verdict"], row["images"]
        budget = tuple(row.get(key) for key in ("attack", "norm", "eps"))
        found[row["model"]] = ModelResult(robust, distances, *facts, attacks, budget)
    return Revision(found, settings, *table.get("norm", pd.Series()).dropna().unique()[:1])
