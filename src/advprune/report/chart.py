"""Charts as data: what is drawn, not how; `chart_live` (bokeh) and `chart_png` (matplotlib) draw.

Columns are named as in tables, so that `formats` gives axes their titles and units: a column that
is a rate is drawn in percent, one of budgets is labelled `8/255`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from pandas.api.types import is_numeric_dtype, is_string_dtype

from advprune.report.formats import bounds, heading, kind_of, texts


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure in long form: one row of `data` is one mark.

    name: unique in the report and a file name, `security-standard`. kind: `line`, `points`,
    `heatmap` (x and y are names, `value` is the coloured number) or `images` (x and y name the
    column and the row of a grid; `value` holds uint8 arrays `[C, H, W]`).
    x: numbers, or names, which are placed side by side in the order of appearance. ordered: numbers
    on x are placed side by side as well, with their values as labels (budgets, layers).
    series: a colour for each value; names of models and families have the same colour everywhere.
    interval: whether y's interval is drawn; a line draws it as a band for its first series alone.
    panel: a panel for each value of this column, below each other, with a common x.
    size: column in [0, 1] that enlarges markers. marker: column of which each value has a marker.
    hover: further columns that the tooltip shows. reference: a dashed horizontal line, in the units
    of y's raw numbers. x_label, y_label: in the place of the column's heading.
    """

    name: str
    kind: Literal["line", "points", "heatmap", "images"]
    data: pd.DataFrame
    x: str
    y: str
    series: str | None = None
    value: str | None = None
    interval: bool = False
    panel: str | None = None
    size: str | None = None
    marker: str | None = None
    ordered: bool = False
    hover: tuple[str, ...] = ()
    reference: float | None = None
    x_label: str = ""
    y_label: str = ""


COLOURS = (  # told apart by colour-blind readers (Okabe and Ito; Tol)
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255"),
    *("#332288", "#999933", "#44AA99", "#AA4499", "#117733"),
)
MARKERS = "osD^vP*Xph<>d"  # as matplotlib names them; of dense networks the first
LABELS = 14  # names that fit under an axis
Places = Mapping[str, int]  # the place of a name's colour, -1 for dense networks: `Run.places`


@dataclass(frozen=True, eq=False)
class Series:
    """One colour of a panel. data: columns x, y, low, high in the units of the axes, size, marker,
    and `words`, the texts of the tooltip. place: of its colour."""

    name: str
    data: pd.DataFrame
    place: int

    def colour(self, dense: str) -> str:
        """Its colour; `dense` for the dense networks."""
        return dense if self.place < 0 else COLOURS[self.place % len(COLOURS)]

    @property
    def marker(self) -> str:
        """Its marker."""
        return MARKERS[0] if self.place < 0 else MARKERS[1 + self.place % (len(MARKERS) - 1)]


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes. ticks: the names of x = 0, 1, 2, …; None where x is a number."""

    title: str
    x_label: str
    y_label: str
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
    data = chart.data
    named = chart.ordered or not is_numeric_dtype(data[chart.x])
    names = list(dict.fromkeys(data[chart.x])) if named else None
    groups = [("", data)] if chart.panel is None else list(data.groupby(chart.panel, sort=False))
    series = [""] if chart.series is None else list(dict.fromkeys(data[chart.series].map(str)))
    order = {name: places.get(name, place) for place, name in enumerate(series)}
    return [_panel(chart, str(title), part, names, order) for title, part in groups]


def _panel(
    chart: Chart, title: str, data: pd.DataFrame, names: list[Any] | None, order: Places
) -> Panel:
    scale, x_scale = kind_of(chart.y).scale, kind_of(chart.x).scale
    found = pd.DataFrame({"y": data[chart.y].astype(float) * scale}, index=data.index)
    found["x"] = data[chart.x].map(names.index) if names else data[chart.x] * x_scale
    for end, column in zip(("low", "high"), bounds(chart.y), strict=True):
        found[end] = data[column].astype(float) * scale if chart.interval else found.y
    found["size"] = data[chart.size].astype(float) if chart.size else 0.0
    found["marker"] = data[chart.marker] if chart.marker else ""
    found["words"] = _words(chart, data)
    owner = data[chart.series].map(str) if chart.series else pd.Series("", index=data.index)
    found = found.dropna(subset=["x", "y"])
    parts = [
        Series(name, found[owner[found.index] == name], place) for name, place in order.items()
    ]
    text = kind_of(chart.x).text
    return Panel(
        title=title,
        x_label=chart.x_label or heading(chart.x),
        y_label=chart.y_label or heading(chart.y),
        series=[one for one in parts if len(one.data)],
        ticks=None if names is None else [n if isinstance(n, str) else text(n) for n in names],
        reference=None if chart.reference is None else chart.reference * scale,
    )


def _words(chart: Chart, data: pd.DataFrame) -> list[str]:
    """One line for each mark: `E-standard, bits 32, clean 99.3, robust 0.0 (0.0–1.3)`."""
    columns = [c for c in (chart.series, *chart.hover, chart.x, chart.value) if c]
    columns += [chart.y, *(bounds(chart.y) if chart.interval else ())]
    read = texts(pd.DataFrame({column: data[column] for column in columns}))
    bare = {column for column in read if is_string_dtype(data.get(column, read[column]))}
    for column in read:
        if column not in bare:
            read[column] = f"{heading(str(column))} " + read[column]
    return [", ".join(row) for row in read.itertuples(index=False, name=None)]


def markers_of(chart: Chart) -> dict[str, str]:
    """The marker of each value of the marker's column, in the order of appearance."""
    names = list(dict.fromkeys(chart.data[chart.marker])) if chart.marker else []
    return {name: MARKERS[place % len(MARKERS)] for place, name in enumerate(names)}
