"""Charts as PNG, drawn by matplotlib: no pyplot, no global state, the same bytes each time."""

from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from advprune.report.chart import Chart, Panel, Places, markers_of, panels
from advprune.report.formats import heading, kind_of

WIDTH, DPI = 5.2, 150  # inches: narrow, so that letters stay readable when a phone shrinks them
LABEL, TICK = 12, 10.5  # points
LINE = 0.22  # inches: of the legend, which is above axes of full height


def png(chart: Chart, places: Places) -> bytes:
    """A chart as PNG of 256 colours without metadata."""
    grids = {"images": _images, "heatmap": _heatmap}
    figure = grids[chart.kind](chart) if chart.kind in grids else _drawn(chart, places)
    canvas, buffer = FigureCanvasAgg(figure), BytesIO()
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _figure(rows: int, height: float, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, rows * height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False).ravel().tolist()
    for ax in axes:
        ax.tick_params(labelsize=TICK)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _drawn(chart: Chart, places: Places) -> Figure:
    found = panels(chart, places)
    figure, axes = _figure(len(found), 3.2 if len(found) == 1 else 2.2)
    look: dict[str, Any]
    for ax, panel in zip(axes, found, strict=True):
        for place, series in enumerate(panel.series):
            data, shade = series.data, series.colour("black")
            if chart.kind == "line":
                look = {"linewidth": 2.2 if series.place < 0 else 1.1, "ms": 4, "mfc": "none"}
                few = series.marker if len(data) <= 40 else ""
                ax.plot(data.x, data.y, marker=few, color=shade, label=series.name or None, **look)
                if chart.interval and not place:
                    ax.fill_between(data.x, data.low, data.high, color=shade, alpha=0.13, lw=0)
                continue
            look = {"facecolors": "none", "edgecolors": shade}
            for sign, own in data.groupby("sign", sort=False):
                ax.scatter(own.x, own.y, s=np.square(own["size"]), marker=str(sign), **look)
            if chart.interval:
                ends = [data.y - data.low, data.high - data.y]
                ax.errorbar(data.x, data.y, ends, fmt="none", ecolor=shade, elinewidth=0.8)
            if series.name:
                ax.scatter([], [], marker="o", label=series.name, **look)
        if chart.kind == "points":
            ax.margins(0.1)  # a large marker is not cut
        _axes(ax, chart, panel, last=panel is found[-1])
    if len(signs := markers_of(chart)) > 1:
        look = {"facecolors": "none", "edgecolors": "#666666"}
        for name, sign in signs.items():
            axes[0].scatter([], [], marker=sign, label=name, **look)
    drawn = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes]
    if handles := {label: handle for marks in drawn for handle, label in marks}:
        longest = max(len(label) for label in handles)
        columns = min(4 if longest <= 8 else 3 if longest <= 13 else 2, len(handles))
        look = {"loc": "outside upper center", "fontsize": TICK, "frameon": False}
        figure.legend(handles.values(), handles.keys(), ncols=columns, **look)
        figure.set_figheight(figure.get_figheight() + LINE * -(-len(handles) // columns))
    if chart.label:
        for ax, panel in zip(axes, found, strict=True):
            _label(figure, ax, pd.concat([series.data for series in panel.series]))
    return figure


def _label(figure: Figure, ax: Axes, marks: pd.DataFrame) -> None:
    """Write the names of marks beside them, except where they would cover another mark or name."""
    figure.draw_without_rendering()  # only then is it known where points are
    figure.set_layout_engine("none")
    middle = ax.transData.transform(marks[["x", "y"]].to_numpy())
    reach = marks["size"].to_numpy()[:, None] * DPI / 72 / 2
    taken = [Bbox(corners) for corners in np.stack([middle - reach, middle + reach], axis=1)]
    for name, at, radius in zip(marks["label"], middle, reach[:, 0], strict=True):
        text = ax.annotate(name, at, xycoords="figure pixels", fontsize=7.5, color="#444444")
        size = np.array(text.get_window_extent().size)
        for side in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # right, left, above, below
            corner = at + np.array(side) * (radius + 4 + size / 2) - size / 2
            box = Bbox([corner, corner + size])
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= ax.bbox.y0
            if inside and not box.count_overlaps(taken):
                text.set_position(tuple(corner))
                taken.append(box)
                break
        else:
            text.remove()


def _axes(ax: Axes, chart: Chart, panel: Panel, last: bool) -> None:
    x_label, y_label = chart.labels
    ax.set_ylabel(y_label, fontsize=LABEL)
    if panel.title:
        ax.set_title(panel.title, loc="left", fontsize=LABEL, fontweight="bold")
    if last:
        ax.set_xlabel(x_label, fontsize=LABEL)
    if panel.ticks is not None:
        ticks, long = panel.shown_ticks(60)
        look: dict[str, Any] = {"rotation": 90} if long else {}
        ax.set_xticks(list(ticks), list(ticks.values()) if last else [""] * len(ticks), **look)
    if panel.reference is not None:
        ax.axhline(panel.reference, color="#666666", linestyle=":", linewidth=1)


def _heatmap(chart: Chart) -> Figure:
    table = grid_of(chart)
    height, width = (1.6 + 0.24 * cells for cells in table.shape)
    figure, (ax,) = _figure(1, height, max(WIDTH, width))
    kind = kind_of(str(chart.value))
    shown = ax.imshow(table.astype(float) * kind.scale, cmap="cividis", aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=90)
    ax.set_yticks(range(len(table)), table.index)
    ax.tick_params(labelsize=8)
    x_label, y_label = chart.labels
    ax.set_xlabel(x_label, fontsize=LABEL)
    ax.set_ylabel(y_label, fontsize=LABEL)
    figure.colorbar(shown, ax=ax, label=heading(str(chart.value)), shrink=0.8)
    return figure


def grid_of(chart: Chart) -> pd.DataFrame:
    """The values of a heat map or of pictures: rows by y, columns by x, in order of appearance."""
    data = chart.data
    table = data.pivot(index=chart.y, columns=chart.x, values=chart.value)
    return table.reindex(index=data[chart.y].unique(), columns=data[chart.x].unique())


def _images(chart: Chart) -> Figure:
    table = grid_of(chart)
    rows, columns = table.shape
    figure = Figure(figsize=(WIDTH, 0.2 + WIDTH / columns * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    for row, cells in zip(axes, table.to_numpy(), strict=True):
        for ax, pixels in zip(row, cells, strict=True):
            if isinstance(pixels, np.ndarray):  # [C, H, W]
                shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
                ax.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for ax, name in zip(axes[0], table.columns, strict=True):
        ax.set_title(str(name), fontsize=8)
    for ax, name in zip(axes[:, 0], table.index, strict=True):
        ax.set_ylabel(str(name), fontsize=8)
    return figure
