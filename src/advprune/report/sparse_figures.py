"""Figures of sparse networks over seeds: accuracy over sparsity, and the course of training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advprune.evaluate.crossed import Mean, mean
from advprune.params import DENSE
from advprune.report.drawing import (
    LINES,
    SIZES,
    grid,
    legend,
    name_ticks,
    panels,
    percent_axis,
    style,
    title,
)
from advprune.report.sparse import Entry, dense_of, entries
from advprune.report.study import Study
from advprune.report.text import percent


def over_sparsity(study: Study) -> Figure | None:
    """Clean and robust accuracy over sparsity, a line a family, the dense network as a band."""
    base = study.params.sparsity_study.dense
    found = [one for one in entries(study) if one.sparsity is not None and one.base == base]
    amounts = sorted({one.sparsity or 0.0 for one in found if one.family != DENSE})
    if not amounts:
        return None
    figure, axes = panels(2, 2.5, sharex=True)
    families = list(dict.fromkeys(one.family for one in found if one.family != DENSE))
    for ax, side in zip(axes, ("clean", "robust"), strict=True):
        _dense_band(ax, dense_of(study, base), side)
        for place, family in enumerate(families):
            own = [one for one in found if one.family == family]
            shift = 0.08 * (place - (len(families) - 1) / 2)
            x = [amounts.index(one.sparsity or 0.0) + shift for one in own]
            _bars(ax, x, [mean(getattr(one, side)) for one in own], style(study, family), family)
        title(ax, side)
        percent_axis(ax, "accuracy %")
    name_ticks(axes[-1], [f"{percent(amount, 0)} %" for amount in amounts])
    axes[-1].set_xlabel("sparsity", fontsize=SIZES["label"])
    legend(figure, axes[0])
    return figure


def _dense_band(ax: Axes, dense: Entry, side: str) -> None:
    found = mean(getattr(dense, side))
    low, high = (100 * end for end in found.interval)
    ax.axhspan(low, high, color="black", alpha=0.1, lw=0)
    ax.axhline(100 * found.value, color="black", lw=1.0, label=f"dense {dense.base}")


def _bars(
    ax: Axes, x: Sequence[float], found: Sequence[Mean], look: dict[str, Any], label: str
) -> None:
    """Points with their intervals."""
    value = np.array([100 * one.value for one in found])
    ends = np.clip(np.array([one.interval for one in found]), 0, 1) * 100
    reach = np.abs(ends.T - value)
    ax.errorbar(x, value, reach, label=label, capsize=2, lw=1.0, ls="none", ms=5.0, **look)


def training(study: Study) -> Figure | None:
    """Loss and accuracy on the training batches over epochs: means over seeds, phase by phase."""
    if study.sparsity_history.empty:
        return None
    points = [name for name in study.params.sparsity_study.points if len(_course(study, name))]
    if not points:
        return None
    figure, axes = panels(2, 2.5, sharex=True)
    for name in points:
        course, family = _course(study, name), study.params.sparsity_study.points[name].family
        alike = [n for n in points if study.params.sparsity_study.points[n].family == family]
        look = {"color": style(study, family)["color"], "lw": 1.1}
        look["ls"] = LINES[alike.index(name) % len(LINES)]
        axes[0].plot(course.index + 1, course.train_loss, label=name, **look)
        axes[1].plot(course.index + 1, 100 * course.train_accuracy, label=name, **look)
    title(axes[0], "loss")
    grid(axes[0])
    title(axes[1], "accuracy on training batches")
    percent_axis(axes[1], "accuracy %")
    axes[1].set_xlabel("epoch", fontsize=SIZES["label"])
    legend(figure, axes[0])
    return figure


def _course(study: Study, point: str) -> pd.DataFrame:
    """A point's training as one course of epochs, its phases one after another: seeds' means."""
    rows = study.sparsity_history
    own = rows[rows.point == point]
    if own.empty or not {"train_loss", "train_accuracy"} <= set(own.columns):
        return pd.DataFrame()
    found = own.groupby(["phase", "epoch"], sort=False)[["train_loss", "train_accuracy"]].mean()
    return found.dropna().reset_index(drop=True)
