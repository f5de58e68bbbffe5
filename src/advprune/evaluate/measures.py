"""Metrics: pure functions of records. y label, p clean prediction, q prediction under attack."""

from typing import Any

import numpy as np
import pandas as pd

from advprune.core.errors import UserError
from advprune.evaluate.statistics import Rate, rate

COLUMNS = ("pred", "confidence", "nll", "brier")  # of records, clean and attacked
BINS = 15  # of confidence, of equal width


def right(records: pd.DataFrame, side: str = "adv") -> np.ndarray:
    """Which images are classified correctly: `side` is adv or clean."""
    return (records[f"{side}_pred"] == records.label).to_numpy()


def clean_accuracy(records: pd.DataFrame) -> Rate:
    """`mean[p = y]`."""
    return rate(right(records, "clean"))


def remnant_accuracy(records: pd.DataFrame) -> Rate:
    """`mean[q = y]`: accuracy under attack, by nn-prune's name."""
    return rate(right(records))


def prediction_change_rate(records: pd.DataFrame) -> Rate:
    """`mean[q != p]`."""
    return rate((records.adv_pred != records.clean_pred).to_numpy())


def attack_success_rate(records: pd.DataFrame) -> Rate:
    """Strict: `sum[p = y and q != y] / sum[p = y]`; empty where nothing was right before."""
    clean = right(records, "clean")
    return Rate(int(np.sum(clean & ~right(records))), int(np.sum(clean)))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """ECE: mean over `BINS` confidence bins of |accuracy - confidence|, weighted by count (Naeini
    et al., AAAI 2015)."""
    index = np.clip(np.ceil(np.asarray(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    sure = np.bincount(index, weights=confidence, minlength=BINS)
    hits = np.bincount(index, weights=np.asarray(right, dtype=float), minlength=BINS)
    return float(np.abs(hits - sure).sum() / max(count.sum(), 1))


MOST_DRAWS = 0.9  # an image counts as misclassified where this share of draws is wrong: 9 of 10


def robust_rates(records: pd.DataFrame) -> dict[str, Any]:
    """Robust accuracy of the worst case, with its interval and its cost per image: by the mean
    logits, by a single draw, and with an image wrong only where at least 9 of 10 draws are."""
    found: dict[str, Any] = remnant_accuracy(records).columns("robust_accuracy")
    single = (records.adv_single_pred == records.label).to_numpy()
    withstood = (records.adv_wrong < MOST_DRAWS).to_numpy()
    found["robust_accuracy_single_draw"] = rate(single).columns("rate")["rate"]
    found["robust_accuracy_9_of_10"] = rate(withstood).columns("rate")["rate"]
    for cost in ("forwards", "gradients"):
        found[cost] = round(float(records[cost].mean()), 1)
    return found


def metrics(records: pd.DataFrame) -> dict[str, Any]:
    """The four rates with intervals, n, and calibration clean and under attack.

    `records` are the rows of one attack on one model (`evaluate.score`). Fractions are rounded to 6
    places; None: no number. UserError where a column is missing, or an image has several rows.
    """
    columns = [f"{side}_{what}" for side in ("clean", "adv") for what in COLUMNS]
    if missing := [name for name in ("index", "label", *columns) if name not in records]:
        raise UserError(f"metrics: the records have no column {missing[0]}")
    if records["index"].duplicated().any():
        raise UserError("metrics: the records are of several attacks or models; choose one")
    found: dict[str, Any] = {"n": len(records)}
    rates = clean_accuracy, remnant_accuracy, prediction_change_rate, attack_success_rate
    for measure in rates:
        found |= measure(records).columns(measure.__name__)
    for side, suffix in (("clean", ""), ("adv", "_attacked")):
        sure, scores = records[f"{side}_confidence"], {"ece": float("nan")}
        if sure.notna().all():
            scores["ece"] = calibration_error(sure.to_numpy(), right(records, side))
        scores |= {key: float(records[f"{side}_{key}"].mean()) for key in ("nll", "brier")}
        known = {key: None if np.isnan(value) else round(value, 4) for key, value in scores.items()}
        found |= {f"{key}{suffix}": value for key, value in known.items()}
    return found
