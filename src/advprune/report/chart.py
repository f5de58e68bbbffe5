"""Charts as data: what is drawn, not how; `chart_live` (bokeh) and `chart_png` (matplotlib) draw.

Columns are named as in tables, so that `formats` gives axes their titles and units: a column that
is a rate is drawn in percent, one of budgets is labelled `8/255`.
"""

from dataclasses import dataclass
from typing import Literal

import pandas as pd


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure in long form: one row of `data` is one mark.

    name: unique in the report and a file name, `security-standard`. kind: `line`, `points`, `bars`,
    `heatmap` (x and y are names, `value` is the coloured number) or `images` (x and y name the
    column and the row of a grid; `value` holds uint8 arrays `[C, H, W]`).
    x: numbers, or names, which are placed side by side in the order of appearance. ordered: numbers
    on x are placed side by side as well, with their values as labels (budgets, layers).
    series: a colour for each value; names of models and families have the same colour everywhere.
    low, high: columns of the interval; a line draws them as a band for its first series alone.
    panel: a panel for each value of this column, below each other, with a common x.
    size: column in [0, 1] that enlarges markers. marker: column of which each value has a marker.
    log_x, log_y: logarithmic axes. hover: further columns that the tooltip shows.
    reference: a dashed horizontal line, in the units of y's raw numbers.
    x_label, y_label: in the place of the column's heading.
    """

    name: str
    kind: Literal["line", "points", "bars", "heatmap", "images"]
    data: pd.DataFrame
    x: str
    y: str
    series: str | None = None
    value: str | None = None
    low: str | None = None
    high: str | None = None
    panel: str | None = None
    size: str | None = None
    marker: str | None = None
    ordered: bool = False
    log_x: bool = False
    log_y: bool = False
    hover: tuple[str, ...] = ()
    reference: float | None = None
    x_label: str = ""
    y_label: str = ""
