"""Calibration: do models know how sure they may be, clean and under attack?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advprune.evaluate.measures import calibration_error
from advprune.report.drawing import SIZES, panels, style
from advprune.report.study import Model, Study

BINS = 15
SIDES = {"clean": "clean", "adv": "attacked"}
SCORES = {"ECE": "ece", "NLL": "nll", "Brier": "brier"}


def reliability_bins(records: pd.DataFrame, side: str, bins: int = BINS) -> pd.DataFrame:
    """Equal-width bins of the confidence, as ECE has them: (k/bins, (k+1)/bins].

    side: clean or adv. A row for each bin that is not empty: low, high, count, confidence (mean),
    accuracy.
    """
    sure = records[f"{side}_confidence"].to_numpy()
    table = pd.DataFrame({"bin": np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)})
    table["confidence"] = sure
    table["accuracy"] = (records[f"{side}_pred"] == records.label).to_numpy().astype(float)
    table["count"] = 1
    made = table.groupby("bin", as_index=False).agg(
        {"count": "sum", "confidence": "mean", "accuracy": "mean"}
    )
    return made.assign(low=made.bin / bins, high=(made.bin + 1) / bins).drop(columns="bin")


def calibration_table(study: Study) -> pd.DataFrame:
    """A row a model: ECE, NLL and Brier score, clean and under the main attack."""
    return pd.DataFrame(_calibration_row(study, model) for model in study.models)


def _calibration_row(study: Study, model: Model) -> dict[str, str]:
    found, records = study.metrics(model), model.attack(study.main)
    row = {"family": model.family, "base": model.base}
    for side, word in SIDES.items():
        suffix = "" if side == "clean" else "_attacked"
        row |= {f"{name} {word}": f"{found[key + suffix]:.3f}" for name, key in SCORES.items()}
        row[f"mean confidence {word} %"] = f"{100 * records[f'{side}_confidence'].mean():.1f}"
    return row


def reliability(study: Study, group: str) -> Figure | None:
    """Reliability diagrams, clean and under the main attack, two models a row."""
    models = study.groups[group]
    rows = -(-len(models) // 2)
    figure, axes = panels(rows, 1.45 + 0.5 / rows, columns=4, sharex=True, sharey=True)
    for index, model in enumerate(models):
        for ax, side in zip(axes[2 * index : 2 * index + 2], SIDES, strict=True):
            _diagram(ax, model.attack(study.main), side, style(study, model.family)["color"])
        axes[2 * index].set_title(
            model.family, loc="left", fontsize=SIZES["label"], fontweight="bold"
        )
    for ax in axes[2 * len(models) :]:
        ax.set_visible(False)
    several = len(study.groups) > 1
    figure.supxlabel(f"confidence ({group})" if several else "confidence", fontsize=SIZES["label"])
    figure.supylabel("accuracy", fontsize=SIZES["label"])
    return figure


def _diagram(ax: Axes, records: pd.DataFrame, side: str, colour: Any) -> None:
    """Accuracy as a dark stroke in each bin, and the gap to the confidence as a bar.

    The more images a bin holds, the stronger its colour.
    """
    bins = reliability_bins(records, side)
    share = (bins["count"] / bins["count"].max()).to_numpy()
    for (_, one), weight in zip(bins.iterrows(), share, strict=True):
        width, gap = one.high - one.low, one.confidence - one.accuracy
        strength = 0.2 + 0.8 * float(np.sqrt(weight))
        ax.bar(one.low, gap, width, one.accuracy, align="edge", color=colour, alpha=0.6 * strength)
        ax.hlines(one.accuracy, one.low, one.high, color="black", lw=1.8, alpha=strength)
    ax.plot([0, 1], [0, 1], color="#888888", lw=0.8, zorder=0)
    right = (records[f"{side}_pred"] == records.label).to_numpy()
    ece = calibration_error(records[f"{side}_confidence"].to_numpy(), right, BINS)
    note = f"{SIDES[side]}\nECE {ece:.2f}"
    plate = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    size = SIZES["note"] - 1
    ax.text(0.04, 1.0, note, va="top", fontsize=size, linespacing=1.1, bbox=plate)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.03, 1.05)
    ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
