"""Figures of sparse networks over seeds: accuracy over sparsity, and the course of training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advprune.core.params import DENSE
from advprune.evaluate.crossed import Mean, mean
from advprune.report.drawing import (
    LINES,
    MARKERS,
    SIZES,
    grid,
    legend,
    name_ticks,
    panels,
    percent_axis,
    style,
    title,
)
from advprune.report.sparse import CONTROLS, Entry, dense_of, entries
from advprune.report.study import Study
from advprune.report.text import percent

# What is drawn of a training, by column of its history; and how a dense network's calls it.
COURSE = {"train_loss": "loss", "probe_clean": "clean %", "probe_robust": "robust %"}
CHOSEN = {"val_accuracy": "probe_clean", "val_robust_accuracy": "probe_robust"}
GAP = 0.12  # between points of the same sparsity, in steps of the axis
HEIGHT, LEGEND = 2.3, 1.1  # inches, of a row of panels and of the legend above them


def over_sparsity(study: Study) -> Figure | None:
    """Clean and robust accuracy over sparsity, with intervals; the dense network as a band.

    Points of the same sparsity stand beside each other, in params order.
    """
    base = study.params.sparsity_study.dense
    found = [one for one in entries(study) if one.sparsity is not None and one.base == base]
    found = [one for one in found if one.family != DENSE]
    amounts = sorted({one.sparsity or 0.0 for one in found})
    if not amounts:
        return None
    figure, axes = panels(2, 2.5, sharex=True)
    places = _side_by_side(found, amounts)
    for ax, side in zip(axes, ("clean", "robust"), strict=True):
        _dense_band(ax, dense_of(study, base), side)
        for family in dict.fromkeys(one.family for one in found):
            own = [one for one in found if one.family == family]
            means = [mean(getattr(one, side)) for one in own]
            _bars(ax, [places[one] for one in own], means, style(study, family), family)
        title(ax, side)
        percent_axis(ax, "accuracy %")
    name_ticks(axes[-1], [f"{percent(amount, 0)} %" for amount in amounts])
    axes[-1].set_xlabel("sparsity", fontsize=SIZES["label"])
    legend(figure, axes[0])
    return figure


def _side_by_side(found: list[Entry], amounts: list[float]) -> dict[Entry, float]:
    """Where each point stands on x: round the place of its sparsity."""
    places = {}
    for place, amount in enumerate(amounts):
        group = [one for one in found if (one.sparsity or 0.0) == amount]
        for rank, one in enumerate(group):
            places[one] = place + GAP * (rank - (len(group) - 1) / 2)
    return places


def _dense_band(ax: Axes, dense: Entry, side: str) -> None:
    found = mean(getattr(dense, side))
    low, high = (100 * end for end in found.interval)
    ax.axhspan(low, high, color="black", alpha=0.1, lw=0)
    ax.axhline(100 * found.value, color="black", lw=1.0, label=f"dense ({dense.base})")


def _bars(
    ax: Axes, x: Sequence[float], found: Sequence[Mean], look: dict[str, Any], label: str
) -> None:
    """Points with their intervals."""
    value = np.array([100 * one.value for one in found])
    ends = np.clip(np.array([one.interval for one in found]), 0, 1) * 100
    reach = np.abs(ends.T - value)
    ax.errorbar(x, value, reach, label=label, capsize=2, lw=1.0, ls="none", ms=5.0, **look)


def training(study: Study) -> Figure | None:
    """Loss on the training batches, clean and robust accuracy on validation images over epochs:
    means over seeds, phase by phase.

    A row for each family that learns its mask, with its controls and the dense network, and one for
    what is left.
    """
    groups = _groups(study)
    if not groups:
        return None
    count = len(COURSE)
    figure, axes = panels(len(groups), HEIGHT + LEGEND / len(groups), columns=count)
    for row, (name, points) in enumerate(groups.items()):
        for ax, (column, words) in zip(axes[count * row :], COURSE.items(), strict=False):
            for point in points:
                course, look = _course(study, point), _look(study, point)
                if column in course:
                    scale = 1 if column == "train_loss" else 100
                    ax.plot(course.index + 1, scale * course[column], label=point, **look)
            title(ax, f"{name}: {words}" if column == "train_loss" else words)
            if column != "train_loss":
                ax.set_ylim(-3, 103)
            grid(ax)
    for ax in axes[-count:]:
        ax.set_xlabel("epoch", fontsize=SIZES["label"])
    lines = {str(line.get_label()): line for ax in axes[::count] for line in ax.get_lines()}
    looks: dict[str, Any] = {"fontsize": SIZES["note"], "frameon": False}
    handles = list(lines.values())
    figure.legend(handles, list(lines), loc="outside upper center", ncols=3, **looks)
    return figure


def _groups(study: Study) -> dict[str, list[str]]:
    """Points whose training is known, by the family that learns among them."""
    points = study.params.sparsity_study.points
    known = [name for name in points if len(_course(study, name))]
    groups: dict[str, list[str]] = {}
    for learned, controls in CONTROLS.items():
        groups[learned] = [n for n in known if points[n].family in (learned, *controls)]
    shown = [name for group in groups.values() for name in group]
    groups["others"] = [name for name in known if name not in shown]
    dense = [DENSE] if len(_course(study, DENSE)) else []
    return {name: dense + group for name, group in groups.items() if group}


def _look(study: Study, name: str) -> dict[str, Any]:
    """A point's line: its family's colour, and a marker of its own among the family's points."""
    if name == DENSE:
        return {"color": "black", "lw": 1.1}
    points = study.params.sparsity_study.points
    family = points[name].family
    place = [other for other in points if points[other].family == family].index(name)
    look = {"color": style(study, family)["color"], "marker": MARKERS[place % len(MARKERS)]}
    return look | {"ls": LINES[place % len(LINES)], "lw": 1.1, "ms": 4.0, "mfc": "none"}


def _course(study: Study, point: str) -> pd.DataFrame:
    """A point's training as one course of epochs, its phases one after another: seeds' means.

    Of the dense network, the accuracies by which its epoch was chosen.
    """
    rows = study.sparsity_history
    own = rows[rows.point == point] if len(rows) else rows
    if point == DENSE and len(own):
        own = own[own.base == study.params.sparsity_study.dense]
        own = own.drop(columns=[*CHOSEN.values()], errors="ignore")
        own = own.rename(columns=CHOSEN)
    if own.empty or "train_loss" not in own:
        return pd.DataFrame()
    columns = [name for name in COURSE if name in own]
    found = own.groupby(["phase", "epoch"], sort=False)[columns].mean()
    return found.dropna(subset="train_loss").reset_index(drop=True)
