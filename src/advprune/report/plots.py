"""Interactive plots: Bokeh documents as JSON, the same bytes for the same study.

Each stands in for the figure of its name, with what can be read by pointing at it. Colours are
those of a light page; `DARK` says what they become on a dark one. Names reach tooltips and axes
as text: Bokeh escapes what it inserts, and `shown` keeps it from reading them as formulas.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, LinearColorMapper
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.util.paths import static_path

from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.evaluate.transfer import transfer_success
from advprune.report.drawing import line_of, style
from advprune.report.figures import PANELS
from advprune.report.study import Model, Study, curve
from advprune.report.summary import group_of, label
from advprune.report.text import budget, percent, with_interval
from advprune.report.tradeoff import SIGNS, axes_of, colour_of, robust_axis, size_of
from advprune.report.transfers import sources

INK, SOFT, LINE = "#1d2126", "#59626d", "#d9dde2"
DARK = {
    **{INK: "#e4e7ea", SOFT: "#a3adb8", LINE: "#373e46"},
    **{"#0072B2": "#6f9cff", "#882255": "#e0699a", "#332288": "#a99cf5", "#117733": "#5cc47f"},
    **{"#AA4499": "#dd82cd", "#D55E00": "#f08445", "#009E73": "#2fc397", "#999933": "#c5c55c"},
}
DASHES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dashdot"}
MARKERS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle", "v": "inverted_triangle"},
    **{"P": "plus", "*": "star", "X": "x", "p": "hex", "h": "hex_dot", "<": "square_pin"},
    **{">": "triangle_pin", "d": "diamond_dot"},
}
HEIGHT = 400  # pixels
AT_ONCE = 4  # markers that a tooltip tells of, where they cover each other


@dataclass(frozen=True)
class Plot:
    """A Bokeh document, and its legend: (name of the lines, colour).

    height: in pixels, of all its panels. wide: takes a whole row.
    """

    item: dict[str, Any]
    legend: list[tuple[str, str]]
    height: int
    wide: bool = False


def library() -> str:
    """Bokeh's script, without widgets and tables."""
    text = (static_path() / "js/bokeh.min.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script")  # as it must read inside an HTML element


def plots(study: Study, drawn: Container[str]) -> dict[str, Plot]:
    """The interactive form of what was drawn, by the name of the figure."""
    of_group: dict[str, Callable[[Study, str], tuple[Any, list[Model]]]] = {
        "security": _security,
        "steps": _steps,
        "layers": _layers,
    }
    found = {}
    for kind, make in of_group.items():
        for group, name in study.each_group(kind):
            if name in drawn:
                made, models = make(study, group)
                found[name] = Plot(_item(made, name), _legend(study, models), _height(made))
    for name, whole in (("tradeoff", _tradeoff), ("transfer", _transfer)):
        if name in drawn:
            made, legend = whole(study), _groups(study, name)
            found[name] = Plot(_item(made, name), legend, _height(made), wide=True)
    return found


def _height(root: Any) -> int:
    return sum(panel.height for panel in getattr(root, "children", [root]))


def shown(text: str) -> str:
    """Text that Bokeh draws as it stands: two dollars would open a formula."""
    return text.replace("$", "$\u200b")


def _legend(study: Study, models: list[Model]) -> list[tuple[str, str]]:
    return [(shown(model.family), _colour(study, model)) for model in models]


def _groups(study: Study, name: str) -> list[tuple[str, str]]:
    """The legend of the trade-off; the matrix needs none."""
    if name == "transfer":
        return []
    used = {group_of(study, model): colour_of(study, model) for model in study.models}
    return [(shown(group), used[group]) for group in study.groups if group in used]


def _colour(study: Study, model: Model) -> str:
    colour: str = style(study, model.family)["color"]
    return INK if colour == "black" else colour


def _item(root: Any, name: str) -> dict[str, Any]:
    """The document as JSON. Bokeh counts its ids over the whole process: here they start at 1."""
    known: dict[str, str] = {}
    return _renamed(dict(json_item(root)), name, known)


def _renamed(value: Any, name: str, known: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: known.setdefault(one, f"{name}-{len(known) + 1}")
            if key in ("id", "root_id") and isinstance(one, str)
            else _renamed(one, name, known)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_renamed(one, name, known) for one in value]
    return value


def _panel(height: int = HEIGHT, **options: Any) -> Any:
    """An empty plot in the page's colours; dragging and scrolling stay with the page."""
    made: Any = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="box_zoom,pan,wheel_zoom,reset",
        active_drag=None,
        active_scroll=None,
        toolbar_location="above",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **options,
    )
    made.toolbar.logo = None
    made.grid.grid_line_color = LINE
    made.axis.axis_line_color = made.axis.major_tick_line_color = SOFT
    made.axis.minor_tick_line_color = None
    made.axis.axis_label_text_color = made.axis.major_label_text_color = INK
    made.axis.axis_label_text_font_style = "normal"
    made.axis.axis_label_text_font_size = made.axis.major_label_text_font_size = "13px"
    return made


def _rounded(value: float | None, digits: int = 2) -> float:
    """Percent as they are drawn."""
    return round(100 * (value or 0.0), digits)


def _spelled(rate: Rate) -> str:
    return with_interval(rate.value, *rate.interval)


# --- trade-off -----------------------------------------------------------------------------------


def _tradeoff(study: Study) -> Any:
    """Robust over clean accuracy, a model a marker."""
    ends = robust_axis(study)
    more: dict[str, Any] = {"y_range": ends} if ends else {}
    made = _panel(x_axis_label="clean accuracy %", y_axis_label="robust accuracy %", **more)
    for group in study.groups:
        for level, sign in SIGNS.items():
            models = [m for m in study.models if group_of(study, m) == group]
            data = [_mark(study, m) for m in models if study.verdict(m).level == level]
            if data:
                _marks(made, data, shown(group), MARKERS[sign])
    words = [("model", "@name, @verdict"), ("clean, robust %", "@clean, @robust")]
    words += [("sparsity", "@sparsity %, @bits bits")]
    made.add_tools(HoverTool(tooltips=words, limit=AT_ONCE))
    return made


def _mark(study: Study, model: Model) -> dict[str, Any]:
    clean, robust = axes_of(study, model)
    return {
        "x": _rounded(clean.value),
        "y": _rounded(robust.value),
        "size": round(size_of(model), 1),
        "colour": colour_of(study, model),
        "name": label(study, model),
        "clean": _spelled(clean),
        "robust": _spelled(robust),
        "sparsity": percent(model.card["sparsity"]),
        "bits": str(model.card["bits"]),
        "verdict": study.verdict(model).level,
    }


def _marks(made: Any, data: list[dict[str, Any]], name: str, marker: str) -> None:
    table: dict[str, Any] = {key: [one[key] for one in data] for key in data[0]}
    drawn = made.scatter(
        "x",
        "y",
        size="size",
        marker=marker,
        color="colour",
        fill_alpha=0.35,
        line_width=1.5,
        source=ColumnDataSource(table),
        name=name,
    )
    _slim(drawn)


# --- curves --------------------------------------------------------------------------------------


def _security(study: Study, group: str) -> tuple[Any, list[Model]]:
    return _curves(study, group, ("curve_eps", "eps"), budget)


def _steps(study: Study, group: str) -> tuple[Any, list[Model]]:
    return _curves(study, group, ("curve_steps", "steps"), lambda value: f"{value:.0f}")


def _curves(
    study: Study, group: str, what: tuple[str, str], words: Callable[[float], str]
) -> tuple[Any, list[Model]]:
    """A line a model over eps or steps, with the dense network's interval as a band."""
    models, column_name = study.groups[group], what[1]
    names = [words(value) for value, _ in curve(models[0], *what)]
    made = _panel(x_axis_label=column_name, y_axis_label="accuracy %", y_range=(-3, 103))
    _name_ticks(made, names)
    dense = _rates(models[0], what)
    low, high = ([_rounded(rate.interval[side]) for rate in dense] for side in (0, 1))
    made.varea(list(range(len(dense))), low, high, color=SOFT, alpha=0.15)
    for model in models:
        _line(made, study, model, ColumnDataSource(_points(_rates(model, what), dense, names)))
    keys = [("model", "$name"), (column_name, "@at"), ("accuracy %", "@kept")]
    _point_at(made, [*keys, ("points from dense", "@beside")])
    return made, models


def _rates(model: Model, what: tuple[str, str]) -> list[Rate]:
    return [remnant_accuracy(records) for _, records in curve(model, *what)]


def _points(rates: Sequence[Rate], dense: Sequence[Rate], names: list[str]) -> dict[str, Any]:
    """The columns of a curve: places, accuracies, and the words of the tooltip."""
    return {
        "x": list(range(len(rates))),
        "y": [_rounded(rate.value) for rate in rates],
        "at": names[: len(rates)],
        "kept": [_spelled(rate) for rate in rates],
        "beside": list(_differences(rates, dense)),
    }


def _differences(rates: Sequence[Rate], dense: Sequence[Rate]) -> Iterator[str]:
    for one, other in zip(rates, dense, strict=False):
        yield f"{100 * ((one.value or 0.0) - (other.value or 0.0)):+.1f}"


def _line(made: Any, study: Study, model: Model, source: ColumnDataSource, y: str = "y") -> None:
    """A model's line with its markers; both carry its name, by which the legend mutes them."""
    colour, name = _colour(study, model), shown(model.family)
    dash = DASHES[line_of(study, model.base)]
    width = 2.5 if model.family == "dense" else 1.2
    alike = {"source": source, "name": name, "color": colour}
    marker = MARKERS[style(study, model.family)["marker"]]
    _slim(made.line("x", y, line_dash=dash, line_width=width, **alike))
    _slim(made.scatter("x", y, marker=marker, size=7, fill_alpha=0.3, tags=["points"], **alike))


def _slim(drawn: Any) -> None:
    """Without the looks of what is (not) selected, which is never asked for; muted is faint."""
    drawn.nonselection_glyph = None
    drawn.muted_glyph = "auto"


def _point_at(made: Any, tooltips: list[tuple[str, str]]) -> None:
    """Tooltips at the markers alone: a line would repeat them."""
    marked = [one for one in made.renderers if "points" in one.tags]
    made.add_tools(HoverTool(tooltips=tooltips, renderers=marked, limit=AT_ONCE))


def _name_ticks(made: Any, names: Sequence[str]) -> None:
    """Name the places 0, 1, 2, … on x."""
    made.xaxis.ticker = FixedTicker(ticks=list(range(len(names))))
    made.xaxis.major_label_overrides = {i: shown(name) for i, name in enumerate(names)}
    made.xgrid.grid_line_color = None


# --- layers --------------------------------------------------------------------------------------


def _layers(study: Study, group: str) -> tuple[Any, list[Model]]:
    """How far the attack moves each layer's feature maps: three panels over depth."""
    models = study.groups[group]
    names = models[0].layers.sort_values("depth").layer.tolist()
    made = [_panel(250, y_axis_label=words) for words in PANELS.values()]
    for model in models:
        source = ColumnDataSource(_layer_data(model, names))
        for one, key in zip(made, PANELS, strict=True):
            _line(one, study, model, source, key)
    for one, (key, words) in zip(made, PANELS.items(), strict=True):
        one.x_range = made[0].x_range
        _point_at(one, [("model", "$name"), ("layer", "@layer"), (words, f"@{key}{{0.000}}")])
        _name_stages(one, names)
    return column(made, sizing_mode="stretch_width"), models


def _layer_data(model: Model, names: list[str]) -> dict[str, Any]:
    """A model's rows by the layers of the dense network; layers that it lacks are left out."""
    places = {name: index for index, name in enumerate(names)}
    table = model.layers.sort_values("depth", ignore_index=True)
    known = [places.get(n, places.get(n.rpartition(".")[0], np.nan)) for n in table.layer]
    table = table.assign(x=known, sigma=table.adv_sigma / table.clean_sigma.clip(lower=1e-12))
    table = table.dropna(subset=["x"])
    columns = {key: [float(f"{value:.4g}") for value in table[key]] for key in PANELS}
    return {"x": table.x.astype(int).tolist(), "layer": table.layer.tolist()} | columns


def _name_stages(made: Any, names: list[str]) -> None:
    """Ticks where a stage begins, by its name."""
    stages = [name.partition(".")[0] for name in names]
    starts = [i for i, (a, b) in enumerate(pairwise(stages), 1) if a != b and "." in names[i]]
    made.xaxis.ticker = FixedTicker(ticks=starts)
    made.xaxis.major_label_overrides = {i: shown(stages[i]) for i in starts}


# --- transfer ------------------------------------------------------------------------------------


def _transfer(study: Study) -> Any:
    """The matrix of transfer: source and target, accuracy, success and n at each cell."""
    targets = [model.name for model in study.models]
    rows = sources(study)
    data = [_cell(study, model, source) for model in study.models for source in rows]
    table: dict[str, Any] = {key: [one[key] for one in data] for key in data[0]}
    made = _panel(
        240 + 22 * len(rows),
        x_range=[shown(name) for name in targets],
        y_range=[shown(name) for name in reversed(rows)],
        x_axis_location="above",
        x_axis_label="target",
        y_axis_label="source",
    )
    made.xaxis.major_label_orientation = "vertical"
    made.axis.major_label_text_font_size = "11px"
    made.grid.grid_line_color = None
    colours = LinearColorMapper(palette=Cividis256, low=0, high=100)
    source = ColumnDataSource(table)
    fill = {"field": "value", "transform": colours}
    made.rect("target", "source", 1, 1, source=source, fill_color=fill, line_color=None)
    made.text(
        "target",
        "source",
        text="text",
        text_color="ink",
        text_font_size="10px",
        text_align="center",
        text_baseline="middle",
        source=source,
    )
    keys = [("source", "@source"), ("target", "@target"), ("accuracy %", "@kept")]
    tips = [*keys, ("success %", "@success"), ("n", "@n")]
    made.add_tools(HoverTool(tooltips=tips, renderers=made.renderers[:1]))
    return made


def _cell(study: Study, model: Model, source: str) -> dict[str, Any]:
    records = model.transferred(study.main, source)
    kept = remnant_accuracy(records)
    value = _rounded(kept.value, 1)
    return {
        "source": shown(source),
        "target": shown(model.name),
        "value": value,
        "text": f"{value:.0f}",
        "ink": "#ffffff" if value < 55 else "#000000",
        "kept": _spelled(kept),
        "success": percent(transfer_success(records, study.own(source, study.main)).value),
        "n": len(records),
    }
