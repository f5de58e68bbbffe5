"""The figure of the search for tickets: how close a sparse network comes to the dense one."""

from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advprune.report.drawing import (
    COLOURS,
    LINES,
    MARKERS,
    SIZES,
    grid,
    legend,
    panels,
    title,
)
from advprune.report.study import Study
from advprune.report.text import percent

PANELS = {"output_distance": "outputs", "kernel_distance": "tangent kernel"}
LEAST = 1e-3  # what is smaller, or by chance negative, is drawn here


def tickets(study: Study) -> Figure | None:
    """The figure of the study's points that were searched for."""
    rows, points = study.sparsity_history, study.params.sparsity_study.points
    if "kernel_distance" not in rows:
        return None
    found = rows.dropna(subset="kernel_distance")
    sparsity = found.point.map({name: _sparsity(point.setting) for name, point in points.items()})
    return search_figure(found.assign(sparsity=sparsity))


def _sparsity(setting: Any) -> float:
    """The share that goes, of a setting as it stands in the settings: alone or in a mapping."""
    return float(setting["sparsity"] if isinstance(setting, dict) else setting)


def search_figure(table: pd.DataFrame) -> Figure | None:
    """Distance from the dense network over the steps of the search, on a logarithmic axis.

    table: columns family, sparsity, seed, step, output_distance and kernel_distance, the distances
    as shares of the dense network's own norm (`pruning.ticket_search.Gauge`). A line is the mean
    over seeds, its band runs from the smallest to the largest; what was not searched for is a
    point. None where the table is empty.
    """
    if table.empty:
        return None
    figure, axes = panels(len(PANELS), 2.4, sharex=True)
    for ax, (column, words) in zip(axes, PANELS.items(), strict=True):
        _lines(ax, table, column)
        ax.axhline(1, color="black", lw=0.8)
        ax.set_yscale("log")
        ax.set_ylabel("squared distance", fontsize=SIZES["label"])
        title(ax, words)
        grid(ax)
    axes[-1].set_xlabel("step of the search", fontsize=SIZES["label"])
    legend(figure, axes[0])
    return figure


def _lines(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """Colour and marker by family, line style by sparsity."""
    families, levels = list(table.family.unique()), sorted(table.sparsity.unique())
    for (i, name), (j, sparsity) in product(enumerate(families), enumerate(levels)):
        rows = table[(table.family == name) & (table.sparsity == sparsity)]
        if rows.empty:
            continue
        found = rows.groupby("step")[column].agg(["mean", "min", "max"]).clip(lower=LEAST)
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "ms": 5, "lw": 1.3}
        look |= {"marker": MARKERS[i % len(MARKERS)], "ls": LINES[j % len(LINES)]}
        ax.plot(found.index, found["mean"], label=f"{name} {percent(sparsity, 0)} %", **look)
        band = found.index, found["min"], found["max"]
        ax.fill_between(*band, color=look["color"], alpha=0.13, lw=0)
