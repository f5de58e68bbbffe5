"""Calibration from records: reliability diagrams, and calibration errors compared."""

from math import inf

import numpy as np
import pandas as pd

from advprune.evaluate.crossed import Mean, MeanComparison
from advprune.evaluate.measures import calibration_error
from advprune.evaluate.statistics import NORMAL

BINS = 15
RESAMPLES = 1000  # of the bootstrap


def reliability_bins(records: pd.DataFrame, side: str, bins: int = BINS) -> pd.DataFrame:
    """Equal-width bins of the confidence, as ECE has them: (k/bins, (k+1)/bins].

    side: clean or adv. One row per bin that is not empty: n, confidence (mean) and accuracy.
    """
    records = records[records[f"{side}_confidence"].notna()]  # where it was recorded
    sure = records[f"{side}_confidence"].to_numpy()
    index = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    hits = (records[f"{side}_pred"] == records.label).to_numpy().astype(float)
    table = pd.DataFrame({"bin": index, "n": 1, "confidence": sure, "accuracy": hits})
    how = {"n": "sum", "confidence": "mean", "accuracy": "mean"}
    return table.groupby("bin").agg(how).reset_index(drop=True)


def compare_calibration(first: pd.DataFrame, second: pd.DataFrame, margin: float) -> MeanComparison:
    """Calibration errors under attack on the same images; standard error by the bootstrap."""
    sides = [
        (table.adv_confidence.to_numpy(), (table.adv_pred == table.label).to_numpy())
        for table in (first, second)
    ]
    random, n = np.random.default_rng(0), len(first)

    def difference(rows: np.ndarray) -> float:
        own, other = (calibration_error(sure[rows], right[rows]) for sure, right in sides)
        return own - other

    value = difference(np.arange(n))
    drawn = [difference(random.integers(n, size=n)) for _ in range(RESAMPLES)]
    found = Mean(value, None, float(np.std(drawn, ddof=1)), inf, 1, n)
    same = 1 - NORMAL.cdf((margin - abs(value)) / max(found.error, 1e-12))
    return MeanComparison(found, p=found.p, direction=value, p_equivalent=same, margin=margin)
