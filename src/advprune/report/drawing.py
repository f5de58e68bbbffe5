"""What figures share: colours, markers, sizes, axes and legends; no pyplot, no global state.

Each family has one colour and one marker in all figures, from palettes that colour-blind readers
can tell apart (Okabe and Ito; Tol). Sizes are chosen so that letters are readable on a phone.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from advprune.evaluate.statistics import Rate
from advprune.report.study import Study

WIDTH = 5.2  # inches: narrow, so that letters stay readable when a phone shrinks the figure
DPI = 150
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255"),
    *("#332288", "#999933", "#44AA99", "#AA4499", "#117733"),
)
MARKERS = "sD^vP*Xph<>d"
LINES = ("-", "--", ":", "-.")
GREY = "#666666"
SIZES = {"label": 12, "tick": 11, "note": 10.5}


def png(figure: Figure) -> bytes:
    """A figure as PNG: 256 colours, without metadata, the same bytes each time."""
    canvas, buffer = FigureCanvasAgg(figure), BytesIO()
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def style(study: Study, family: str) -> dict[str, Any]:
    """A family's colour and marker: by its place in params.yaml, the dense network in black."""
    if family == "dense":
        return {"color": "black", "marker": "o"}
    names = families(study)
    place = names.index(family) if family in names else len(names)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def families(study: Study) -> list[str]:
    """All families of params.yaml, those that are only in the protocol last."""
    params = study.params
    members = [m.family for group in params.protocol.values() for m in group.values() if m.family]
    points = [point.family for point in params.sparsity_study.points.values()]
    more = (*params.masks, *params.quantized, *params.binary, *params.compression, *params.tickets)
    return list(dict.fromkeys(["int8", *params.prune, *params.sweep, *members, *more, *points]))


def line_of(study: Study, recipe: str) -> str:
    """The line style of a base or recipe: bases first, then the others, in params order."""
    names = list(dict.fromkeys([*study.params.bases, *study.params.protocol, recipe]))
    return LINES[names.index(recipe) % len(LINES)]


def panels(rows: int, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, each row so many inches high."""
    figure = Figure(figsize=(WIDTH, rows * height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for ax in axes:
        ax.tick_params(labelsize=SIZES["tick"])
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def title(ax: Axes, text: str) -> None:
    """Name a panel, bold, at its upper left."""
    ax.set_title(text, loc="left", fontsize=SIZES["label"], fontweight="bold")


def percent_axis(ax: Axes, label: str) -> None:
    """y from 0 to 100 %, with a light grid."""
    ax.set_ylim(-3, 103)
    ax.set_ylabel(label, fontsize=SIZES["label"])
    grid(ax)


def grid(ax: Axes) -> None:
    """Light lines across."""
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)  # also where rings and bars are drawn


def name_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Name the places 0, 1, 2, … on x; fractions take two lines."""
    ax.set_xticks(range(len(names)), [name.replace("/", "/\n") for name in names])


def legend(figure: Figure, ax: Axes) -> None:
    """One legend above all panels, in as many columns as its words allow."""
    handles, labels = ax.get_legend_handles_labels()
    longest = max((len(text) + sum(map(str.isupper, text)) / 4 for text in labels), default=0)
    columns = 4 if longest <= 7 else 3 if longest <= 11 else 2
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(columns, max(len(labels), 1)),
        fontsize=SIZES["tick"],
        frameon=False,
    )


def percents(rates: list[Rate]) -> list[float]:
    """Rates in percent."""
    return [100 * (rate.value or 0.0) for rate in rates]


def band(ax: Axes, x: Sequence[float], rates: list[Rate], colour: str) -> None:
    """The 95 % interval around a line."""
    low = [100 * (rate.interval[0] or 0.0) for rate in rates]
    high = [100 * (rate.interval[1] or 0.0) for rate in rates]
    order = np.argsort(x)
    across, bottom, top = (np.asarray(values)[order] for values in (x, low, high))
    ax.fill_between(across, bottom, top, color=colour, alpha=0.13, lw=0)
