"""Charts on the page, drawn by bokeh: documents as JSON, the same bytes for the same run.

Colours are those of a light page, whose style inverts them on a dark one.
"""

import json
from typing import Any

from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, LinearColorMapper
from bokeh.models.annotations import Span, Whisker
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.util.paths import static_path

from advprune.report.chart import MARKERS, Chart, Panel, Places, panels
from advprune.report.formats import cell_text, heading, kind_of

INK, SOFT, LINE = "#1d2126", "#59626d", "#d9dde2"
BOKEH = (  # the names of chart.MARKERS
    *("circle", "square", "diamond", "triangle", "inverted_triangle", "plus", "star", "x"),
    *("hex", "hex_dot", "square_pin", "triangle_pin", "diamond_dot"),
)
SIGNS = dict(zip(MARKERS, BOKEH, strict=True))
HEIGHT, SMALL = 330, 240  # pixels: of a single panel, of one of several
AT_ONCE = 4  # marks that a tooltip tells of where they cover each other


def library() -> str:
    """Bokeh's script, without widgets and tables."""
    text = (static_path() / "js/bokeh.min.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script")  # as it must read inside an HTML element


def plain(text: str) -> str:
    """Text that bokeh draws as it is: two dollars would open a formula."""
    return text.replace("$", "$\u200b")


def live(chart: Chart, places: Places) -> dict[str, Any]:
    """A chart that is not of images as a bokeh document: `item`; `legend`: names of marks and their
    colours; `height` in pixels; `wide`: it takes a whole row of the page."""
    drawn = [] if chart.kind == "heatmap" else panels(chart, places)
    height = HEIGHT if len(drawn) == 1 else SMALL
    figures = [_figure(chart, panel, height) for panel in drawn] or [_heatmap(chart)]
    for one in figures:
        one.x_range = figures[0].x_range
    root = figures[0] if len(figures) == 1 else column(figures, sizing_mode="stretch_width")
    names = {s.name: s.colour(INK) for panel in drawn for s in panel.series if s.name}
    renamed: dict[str, str] = {}

    def rename(value: dict[str, Any]) -> dict[str, Any]:
        """With ids that start at 1: bokeh counts its own over the whole process."""
        own = [key for key in ("id", "root_id") if isinstance(value.get(key), str)]
        for key in own:
            value[key] = renamed.setdefault(value[key], f"{chart.name}-{len(renamed) + 1}")
        return value

    return {
        "item": json.loads(json.dumps(json_item(root)), object_hook=rename),
        "legend": [(plain(name), shade) for name, shade in names.items()],
        "height": sum(one.height for one in figures),
        "wide": chart.kind != "line",
    }


def _axes(chart: Chart, height: int, **options: Any) -> Any:
    """Empty axes in the page's colours; dragging and scrolling stay with the page."""
    x, y = map(plain, chart.labels)
    colours = ("background_fill_color", "border_fill_color", "outline_line_color")
    look: dict[str, Any] = dict.fromkeys((*colours, "active_drag", "active_scroll"))
    look |= {"sizing_mode": "stretch_width", "toolbar_location": "above"}
    look |= {"tools": "box_zoom,pan,wheel_zoom,reset", "x_axis_label": x, "y_axis_label": y}
    axes: Any = figure(height=height, **look, **options)
    axes.toolbar.logo = None
    axes.grid.grid_line_color = LINE
    axes.axis.axis_line_color = axes.axis.major_tick_line_color = SOFT
    axes.axis.minor_tick_line_color = None
    axes.axis.axis_label_text_color = axes.axis.major_label_text_color = INK
    axes.axis.axis_label_text_font_style = "normal"
    axes.axis.axis_label_text_font_size = axes.axis.major_label_text_font_size = "13px"
    return axes


def _figure(chart: Chart, panel: Panel, height: int) -> Any:
    axes = _axes(chart, height)
    if panel.title:
        axes.title.text = plain(panel.title)
        axes.title.text_color = INK
    if panel.ticks is not None:
        ticks, long = panel.shown_ticks(70)
        axes.xaxis.ticker = FixedTicker(ticks=list(ticks))
        axes.xaxis.major_label_overrides = {place: plain(name) for place, name in ticks.items()}
        axes.xgrid.grid_line_color = None
        if long:
            axes.xaxis.major_label_orientation = "vertical"
            axes.xaxis.major_label_text_font_size = "11px"
    if panel.reference is not None:
        dash: dict[str, Any] = {"line_color": SOFT, "line_dash": "dotted"}
        axes.add_layout(Span(location=panel.reference, dimension="width", **dash))
    if chart.interval and chart.kind == "points":  # bokeh's own range would cut whiskers off
        low = min(series.data.low.min() for series in panel.series)
        high = max(series.data.high.max() for series in panel.series)
        axes.y_range.update(start=low - (high - low) / 20, end=high + (high - low) / 20)
    marks = []
    for place, series in enumerate(panel.series):
        data, shade = series.data, series.colour(INK)
        shown: dict[str, Any] = {
            key: [float(f"{value:.5g}") for value in data[key]] for key in ("x", "y", "low", "high")
        }
        shown |= {"words": list(data.words), "size": [round(one, 1) for one in data["size"]]}
        alike: dict[str, Any] = {"name": plain(series.name), "color": shade}
        if chart.kind == "line":
            alike["source"] = source = ColumnDataSource(shown)
            if chart.interval and not place:
                axes.varea("x", "low", "high", source=source, color=SOFT, alpha=0.15)
            width = 2.5 if series.place < 0 else 1.3
            _slim(axes.line("x", "y", line_width=width, **alike))
            small = 7 if len(data) <= 40 else 3
            look: dict[str, Any] = {"marker": SIGNS[series.marker], "size": small}
            look |= {"fill_alpha": 0.3}
        else:
            shown["sign"] = [SIGNS[sign] for sign in data.sign]
            alike["source"] = source = ColumnDataSource(shown)
            if chart.interval:
                ends = Whisker(base="x", upper="high", lower="low", source=source, line_color=shade)
                axes.add_layout(ends)
            look = {"marker": "sign", "size": "size", "fill_alpha": 0.35, "line_width": 1.5}
        marks.append(_slim(axes.scatter("x", "y", **look, **alike)))
    axes.add_tools(HoverTool(tooltips=[("", "@words")], renderers=marks, limit=AT_ONCE))
    return axes


def _heatmap(chart: Chart) -> Any:
    data, value, kind = chart.data, str(chart.value), kind_of(str(chart.value))
    x, y = ([plain(str(name)) for name in data[axis]] for axis in (chart.x, chart.y))
    rows, columns = (list(dict.fromkeys(names)) for names in (y, x))
    numbers = data[value].astype(float) * kind.scale
    ranges = {"x_range": columns, "y_range": rows[::-1]}
    axes = _axes(chart, max(240 + 20 * len(rows), SMALL), x_axis_location="above", **ranges)
    axes.xaxis.major_label_orientation = "vertical"
    axes.axis.major_label_text_font_size = "11px"
    axes.grid.grid_line_color = None
    source = ColumnDataSource(
        {
            "x": x,
            "y": y,
            "value": [float(f"{one:.4g}") for one in numbers],
            "text": [cell_text(kind, one) for one in data[value]],
            "ink": ["#ffffff" if one < 50 else "#000000" for one in numbers],
        }
    )
    mapper = LinearColorMapper(palette=Cividis256, low=0.0, high=100.0)
    fill = {"field": "value", "transform": mapper}
    cells = axes.rect("x", "y", 1, 1, source=source, fill_color=fill, line_color=None)
    look: dict[str, Any] = {"text_align": "center", "text_baseline": "middle"}
    axes.text("x", "y", "text", text_color="ink", text_font_size="10px", source=source, **look)
    keys = [(heading(chart.y), "@y"), (heading(chart.x), "@x"), (heading(value), "@text")]
    axes.add_tools(HoverTool(tooltips=keys, renderers=[cells]))
    return axes


def _slim(drawn: Any) -> Any:
    """Without the looks of what is (not) selected, which is never asked for; muted is faint."""
    drawn.nonselection_glyph = None
    drawn.muted_glyph = "auto"
    return drawn
