"""Charts as data: what is drawn, not how; `chart_live` (bokeh) and `chart_png` (matplotlib) draw.

Columns are named as in tables, so that `formats` gives axes their titles and units.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pandas.api.types import is_numeric_dtype, is_string_dtype

from advprune.report.formats import bounds, heading, kind_of, texts


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure in long form: one row of `data` is one mark; the other fields name columns.

    name: unique in the report, and a file name. kind: of a `heatmap` x and y are names and `value`
    is the coloured rate, of `images` they name column and row of a grid and `value` holds uint8
    arrays `[C, H, W]`. x: numbers, or names, which are placed side by side; ordered: numbers are as
    well. series: a colour each, the same everywhere. interval: whether y's is drawn (of a line: a
    band for its first series alone). panel: axes each, below each other. size: in [0, 1], enlarges
    markers. label: written beside markers in a picture. hover: more for the tooltip. reference: a
    horizontal line, in the units of y's raw numbers.
    """

    name: str
    kind: Literal["line", "points", "heatmap", "images"]
    data: pd.DataFrame
    x: str
    y: str
    series: str | None = None
    panel: str | None = None
    value: str | None = None
    interval: bool = False
    size: str | None = None
    marker: str | None = None
    label: str | None = None
    ordered: bool = False
    hover: tuple[str, ...] = ()
    reference: float | None = None
    x_label: str = ""
    y_label: str = ""

    @property
    def labels(self) -> tuple[str, str]:
        """The titles of both axes."""
        return self.x_label or heading(self.x), self.y_label or heading(self.y)


COLOURS = (  # told apart by colour-blind readers (Okabe and Ito; Tol)
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255"),
    *("#332288", "#999933", "#44AA99", "#AA4499", "#117733"),
)
MARKERS = "osD^vP*Xph<>d"  # as matplotlib names them; of dense networks the first
SMALLEST, LARGEST = 6.0, 16.0  # markers, points across
LABELS = 14  # names that fit under an axis
Places = Mapping[str, int]  # the place of a name's colour, -1 for dense networks: `Run.places`


@dataclass(frozen=True, eq=False)
class Series:
    """One colour of a panel. data: one row per mark from left to right, in the units of the axes;
    `words` is its tooltip. place: of its colour, -1 for dense networks."""

    name: str
    data: pd.DataFrame
    place: int

    def colour(self, dense: str) -> str:
        """Its colour; `dense` for the dense networks."""
        return dense if self.place < 0 else COLOURS[self.place % len(COLOURS)]

    @property
    def marker(self) -> str:
        """The marker of its line."""
        return MARKERS[0] if self.place < 0 else MARKERS[1 + self.place % (len(MARKERS) - 1)]


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes. ticks: the names of x = 0, 1, 2, …; None where x is a number."""

    title: str
    series: list[Series]
    ticks: list[str] | None
    reference: float | None

    def shown_ticks(self, longest: int) -> tuple[dict[int, str], bool]:
        """As many names as fit under an axis, evenly spaced; whether their letters exceed it."""
        names = self.ticks or []
        step = -(-len(names) // LABELS) or 1
        shown = dict(list(enumerate(names))[::step])
        return shown, max(map(len, names), default=0) * len(shown) > longest


def panels(chart: Chart, places: Places) -> list[Panel]:
    """What both back ends draw: values in the units of the axes, names in the order of the data."""
    data, x, y = chart.data, kind_of(chart.x), kind_of(chart.y)
    named = chart.ordered or not is_numeric_dtype(data[chart.x])
    names = list(dict.fromkeys(data[chart.x])) if named else None
    low, high = (data[c] if chart.interval else data[chart.y] for c in bounds(chart.y))
    # Tooltips are one line: `E-standard, bits 32, clean 99.3, robust 0.0 (0.0–1.3)`.
    columns = [c for c in (chart.series, *chart.hover, chart.x, chart.value, chart.y) if c]
    columns += bounds(chart.y) if chart.interval else ()
    tooltips = texts(pd.DataFrame({column: data[column] for column in columns}))
    for column in tooltips:
        if not is_string_dtype(data.get(column, tooltips[column])):
            tooltips[column] = f"{heading(str(column))} " + tooltips[column]
    marks = pd.DataFrame(
        {
            "x": data[chart.x].map(names.index) if names else data[chart.x] * x.scale,
            "y": data[chart.y].astype(float) * y.scale,
            "low": low.astype(float) * y.scale,
            "high": high.astype(float) * y.scale,
            "size": SMALLEST + (LARGEST - SMALLEST) * (data[chart.size] if chart.size else 0.0),
            "sign": data[chart.marker].map(markers_of(chart)) if chart.marker else MARKERS[0],
            "label": data[chart.label] if chart.label else "",
            "words": [", ".join(row) for row in tooltips.itertuples(index=False, name=None)],
            "series": data[chart.series].map(str) if chart.series else "",
            "panel": data[chart.panel].map(str) if chart.panel else "",
        }
    )
    titles, owners = marks.panel.unique(), marks.series.unique()
    order = {name: places.get(name, place) for place, name in enumerate(owners)}
    marks = marks.dropna(subset=["x", "y"]).sort_values("x", kind="stable")
    parts = {
        title: [
            Series(name, own, place)
            for name, place in order.items()
            if len(own := marks[(marks.series == name) & (marks.panel == title)])
        ]
        for title in titles
    }
    ticks = None if names is None else [n if isinstance(n, str) else x.text(n) for n in names]
    reference = None if chart.reference is None else chart.reference * y.scale
    return [Panel(title, own, ticks, reference) for title, own in parts.items()]


def markers_of(chart: Chart) -> dict[str, str]:
    """The marker of each value of the marker's column, in the order of appearance."""
    names = list(dict.fromkeys(chart.data[chart.marker])) if chart.marker else []
    return {name: MARKERS[place % len(MARKERS)] for place, name in enumerate(names)}
