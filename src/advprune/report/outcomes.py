"""Outcomes: image by image, whether a model stands its worst case. Small enough to be committed.

Two revisions can then be compared on the same images, which tells apart far smaller differences
than two intervals do.
"""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

from advprune.core.errors import UserError
from advprune.evaluate.compare import right
from advprune.report.study import Study

FILE = "outcomes.csv"
COLUMNS = ["model", "images", "robust"]
FINGERPRINT = 16  # hex digits


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Of one model: the fingerprint of the test images, and which of them stay right, in order."""

    images: str
    robust: np.ndarray

    @property
    def hits(self) -> tuple[int, int]:
        """How many stay right, and of how many."""
        return int(self.robust.sum()), len(self.robust)


def outcome_table(study: Study) -> pd.DataFrame:
    """A row a model: its name, the fingerprint of images and labels, and a 1 for each image that
    is right in the worst case over the suite, a 0 for each other."""
    images = fingerprint(study)
    rows = [
        (model.name, images, "".join("01"[hit] for hit in right(study.robust(model)).astype(int)))
        for model in study.models
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def fingerprint(study: Study) -> str:
    """Short sha256 of the test images and labels, in order."""
    labels = study.robust(study.models[0]).label.to_numpy(dtype="<i8")
    digest = hashlib.sha256(np.ascontiguousarray(study.clean_images).tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()[:FINGERPRINT]


def read_outcomes(text: str, where: str) -> dict[str, Outcomes]:
    """The outcomes of all models from the text of such a table; UserError where it is none."""
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{where} is no table of outcomes: {error}") from error
    if list(table.columns) != COLUMNS:
        raise UserError(f"{where} is no table of outcomes: its columns are {list(table.columns)}")
    if len(wrong := table[~table.robust.str.fullmatch("[01]+")]):
        raise UserError(f"{where}: the outcomes of {wrong.model.iloc[0]} are not all 0 or 1")
    return {
        model: Outcomes(images, np.array(list(robust)) == "1")
        for model, images, robust in table.itertuples(index=False)
    }
