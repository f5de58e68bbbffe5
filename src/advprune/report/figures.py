"""Figures: pure functions of a study that return matplotlib figures; no pyplot, no global state.

Each family has one colour and one marker in all figures, from palettes that colour-blind readers
can tell apart (Okabe and Ito; Tol). Sizes are chosen so that letters are readable on a phone.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.report.study import Model, Point, Study, curve
from advprune.report.text import budget, setting_text

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


def figures(study: Study) -> dict[str, Figure]:
    """All figures that this study allows, by file name without ending."""
    makers: dict[str, Callable[[Study], Figure | None]] = {
        "sweep": sweep,
        "security": security,
        "steps": steps,
        "transfer": transfer,
        "layers": layers,
        "images": images,
        "weights": weights,
    }
    made = {name: make(study) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


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
    names = list(dict.fromkeys(["int8", *study.params.prune, *study.params.sweep]))
    place = names.index(family) if family in names else len(names)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def _name(study: Study, model: Model) -> str:
    """What a model is called in a figure: the base only where there are several."""
    return model.family if len(study.params.bases) == 1 else model.name


def _axes(rows: int, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, rows * height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for ax in axes:
        ax.tick_params(labelsize=SIZES["tick"])
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=SIZES["label"], fontweight="bold")


def _percent_axis(ax: Axes, label: str) -> None:
    ax.set_ylim(-3, 103)
    ax.set_ylabel(label, fontsize=SIZES["label"])
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    columns = 4 if longest <= 7 else 3 if longest <= 11 else 2
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(columns, max(len(labels), 1)),
        fontsize=SIZES["tick"],
        frameon=False,
    )


def _spread_labels(ax: Axes, labels: list[tuple[float, str, str]], gap: float = 10.5) -> None:
    """Name lines at the right edge, moved apart where they would cover each other.

    labels: (value in percent, text, colour).
    """
    reached = -1e9
    for value, text, colour in sorted(labels):
        reached = max(value, reached + gap)
        ax.annotate(
            text,
            (1.0, reached),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=SIZES["note"],
            color=colour,
            annotation_clip=False,
        )


# --- sweeps --------------------------------------------------------------------------------------


def sweep(study: Study) -> Figure | None:
    """Remnant accuracy over a family's setting, each attack a line, the dense network thin."""
    panels = [key for key in study.sweeps if study.points(*key)]
    if not panels:
        return None
    figure, axes = _axes(len(panels), 2.4)
    for ax, (family, base) in zip(axes, panels, strict=True):
        _sweep_panel(ax, study, family, base)
    return figure


def _sweep_panel(ax: Axes, study: Study, family: str, base: str) -> None:
    points = study.points(family, base)
    x = _positions(ax, [point.setting for point in points])
    look, labels = style(study, family), []
    for index, attack in enumerate(study.attacks):
        rates = [remnant_accuracy(point.attack(attack)) for point in points]
        line = LINES[index % len(LINES)]
        _band(ax, x, rates, look["color"])
        values = _percents(rates)
        ax.plot(x, values, line, color=look["color"], marker="osD^"[index % 4], ms=4.5, lw=1.4)
        parent = remnant_accuracy(study.dense(base).attack(attack))
        ax.axhline(100 * (parent.value or 0.0), color="black", lw=0.8, ls=line)
        labels.append((_edge(x, values), attack, look["color"]))
    clean = _percents(_clean(study, points))
    ax.plot(x, clean, color=GREY, lw=1.2, marker="x", ms=4.5)
    labels.append((_edge(x, clean), "clean", GREY))
    _spread_labels(ax, labels)
    single = len(study.params.bases) == 1
    ax.set_xlabel(f"{family}" if single else f"{family} ({base})", fontsize=SIZES["label"])
    _percent_axis(ax, "accuracy %")


def _clean(study: Study, points: list[Point]) -> list[Rate]:
    first = next(iter(study.attacks))
    return [clean_accuracy(point.attack(first)) for point in points]


def _edge(x: Sequence[float], values: list[float]) -> float:
    """The value of a line at its right end."""
    return values[int(np.argmax(x))]


def _positions(ax: Axes, settings: list[Any]) -> list[float]:
    """Where settings lie on x: as numbers (logarithmic over a wide range), else one by one."""
    numbers = [float(s) for s in settings if isinstance(s, int | float)]
    if len(numbers) < len(settings):
        names = [setting_text(setting) for setting in settings]
        ax.set_xticks(range(len(names)), names, fontsize=SIZES["tick"])
        return [float(i) for i in range(len(settings))]
    if min(numbers) > 0 and max(numbers) / min(numbers) >= 50:
        ax.set_xscale("log")
    else:
        ax.set_xticks(numbers, [setting_text(number) for number in numbers])
    return numbers


def _percents(rates: list[Rate]) -> list[float]:
    return [100 * (rate.value or 0.0) for rate in rates]


def _band(ax: Axes, x: Sequence[float], rates: list[Rate], colour: str) -> None:
    """The 95 % interval around a line."""
    low = [100 * (rate.interval[0] or 0.0) for rate in rates]
    high = [100 * (rate.interval[1] or 0.0) for rate in rates]
    order = np.argsort(x)
    across, bottom, top = (np.asarray(values)[order] for values in (x, low, high))
    ax.fill_between(across, bottom, top, color=colour, alpha=0.13, lw=0)


# --- curves --------------------------------------------------------------------------------------


def security(study: Study) -> Figure | None:
    """Remnant accuracy over eps for all models, and below it the difference from dense."""
    return _curves(study, "curve_eps", "eps", "eps", budget)


def steps(study: Study) -> Figure | None:
    """Remnant accuracy over the number of steps, and below it the difference from dense."""
    return _curves(study, "curve_steps", "steps", "steps", lambda value: f"{value:.0f}")


def _curves(
    study: Study, name: str, column: str, label: str, words: Callable[[float], str]
) -> Figure | None:
    points = curve(study.models[0], name, column)
    if not points:
        return None
    figure, (top, bottom) = _axes(2, 2.8, sharex=True)
    for index, base in enumerate(study.params.bases):
        _curves_of(top, bottom, study, base, (name, column), LINES[index % len(LINES)])
    ticks = [value for value, _ in points]
    top.set_xticks(range(len(ticks)), [words(value).replace("/", "/\n") for value in ticks])
    bottom.set_xlabel(label, fontsize=SIZES["label"])
    bottom.set_ylabel("points from dense", fontsize=SIZES["label"])
    bottom.grid(axis="y", color="#dddddd", linewidth=0.6)
    _percent_axis(top, "remnant accuracy %")
    _legend(figure, top)
    return figure


def _curves_of(
    top: Axes, bottom: Axes, study: Study, base: str, what: tuple[str, str], line: str
) -> None:
    models = study.of(base)
    parent: list[Rate] = []
    for index, model in enumerate(models):
        rates = [remnant_accuracy(records) for _, records in curve(model, *what)]
        parent = parent or rates
        x = np.arange(len(rates)) + 0.06 * (index - len(models) / 2)
        look = style(study, model.family) | {"ls": line, "lw": 1.0, "ms": 5.0, "mfc": "none"}
        top.plot(np.arange(len(rates)), _percents(rates), label=_name(study, model), **look)
        bottom.plot(x, np.subtract(_percents(rates), _percents(parent[: len(rates)])), **look)
    low = [100 * ((r.interval[0] or 0.0) - (r.value or 0.0)) for r in parent]
    high = [100 * ((r.interval[1] or 0.0) - (r.value or 0.0)) for r in parent]
    bottom.fill_between(range(len(parent)), low, high, color="black", alpha=0.1, lw=0)


# --- transfer ------------------------------------------------------------------------------------


def transfer(study: Study) -> Figure | None:
    """Accuracy attacked itself and on images carried from dense and back, a panel an attack."""
    models = [model for model in study.models if model.transfer is not None]
    if not models:
        return None
    attacks = list(study.attacks)
    figure, axes = _axes(len(attacks), 0.5 + 0.26 * len(models), sharex=True)
    for ax, attack in zip(axes, attacks, strict=True):
        cells = np.array([_crossings(model, attack) for model in models])
        picture = _heat(ax, cells)
        ax.set_yticks(range(len(models)), [_name(study, model) for model in models])
        _title(ax, attack)
    axes[-1].set_xticks(range(3), ["white-box", "dense → model", "model → dense"])
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("accuracy %", fontsize=SIZES["label"])
    return figure


def _heat(ax: Axes, cells: np.ndarray) -> Any:
    """Values in percent as colours on a fixed scale, written into their cells."""
    picture = ax.imshow(cells, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(cells):
        ink = "white" if value < 55 else "black"
        ax.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=11)
    ax.axvline(0.5, color="white", lw=4)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return picture


def _crossings(model: Model, attack: str) -> list[float]:
    tables = [
        model.attack(attack),
        model.transferred(attack),
        model.transferred(attack, source=model.family),
    ]
    return _percents([remnant_accuracy(table) for table in tables])


# --- where the attack acts -----------------------------------------------------------------------

PANELS = {
    "relative_difference": "relative difference",
    "distance": "distance between distributions",
    "sigma": "sigma under attack / clean",
}


def layers(study: Study) -> Figure | None:
    """How far the main attack moves each layer's feature maps, over depth."""
    first = study.models[0].layers.sort_values("depth", ignore_index=True)
    if first.empty:
        return None
    figure, axes = _axes(len(PANELS), 2.3, sharex=True)
    places = {name: index for index, name in enumerate(first.layer)}
    for index, model in enumerate(study.models):
        _layer_lines(axes, study, model, places, index)
    for ax, title in zip(axes, PANELS.values(), strict=True):
        _title(ax, title)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes[-1].axhline(1, color=GREY, lw=0.8)
    _stages(axes, first.layer.tolist())
    _legend(figure, axes[0])
    return figure


def _layer_lines(
    axes: list[Axes], study: Study, model: Model, places: dict[str, int], index: int
) -> None:
    """One model's three lines; layers that the dense network lacks are left out.

    Models take turns in marking a layer, so that lines that coincide can be told apart.
    """
    table = model.layers.sort_values("depth", ignore_index=True)
    known = [places.get(n, places.get(n.rpartition(".")[0], np.nan)) for n in table.layer]
    table = table.assign(
        place=known,
        sigma=table.adv_sigma / table.clean_sigma.clip(lower=1e-12),
    ).dropna(subset=["place"])
    turns = (index, len(study.models))
    line = LINES[list(study.params.bases).index(model.base) % len(LINES)]
    look = style(study, model.family) | {"ls": line, "ms": 5.5, "markevery": turns}
    look["lw"] = 2.6 if model.family == "dense" else 0.9
    for ax, column in zip(axes, PANELS, strict=True):
        ax.plot(table.place, table[column], label=_name(study, model), **look)


def _stages(axes: list[Axes], names: list[str]) -> None:
    """Stage boundaries as lines, and the stages' names under the lowest panel."""
    stages = [name.partition(".")[0] if "." in name else "" for name in names]
    starts = [0] + [i for i, (a, b) in enumerate(pairwise(stages), 1) if a != b] + [len(names)]
    middles, labels = [], []
    for begin, end in pairwise(starts):
        for ax in axes:
            ax.axvline(begin - 0.5, color="#bbbbbb", lw=0.7)
        middles.append((begin + end - 1) / 2)
        labels.append(stages[begin] or ("input" if begin == 0 else "out"))
    axes[-1].set_xticks(middles, labels)
    axes[-1].xaxis.set_minor_locator(NullLocator())


# --- images --------------------------------------------------------------------------------------

SHOWN = 8  # models at most
EXAMPLES = 2


def images(study: Study) -> Figure | None:
    """Clean and adversarial images and their difference, for two images and a few models."""
    if not study.params.active().show_images:
        return None
    models = [m for m in study.of(study.models[0].base) if m.name in study.adv_images][:SHOWN]
    chosen = _examples(study, models[0]) if models else []
    if not chosen:
        return None
    figure, axes = _axes(len(models), 0.98, columns=3 * len(chosen))
    for row, model in enumerate(models):
        cells = axes[row * 3 * len(chosen) : (row + 1) * 3 * len(chosen)]
        for place, index in enumerate(chosen):
            _triple(cells[3 * place : 3 * place + 3], study, model, index)
        cells[0].set_ylabel(model.family, fontsize=SIZES["label"])
    for ax, word in zip(axes, ("clean", "attacked", "change") * len(chosen), strict=False):
        ax.set_title(word, fontsize=SIZES["tick"])
    return figure


def _examples(study: Study, dense: Model) -> list[int]:
    """The first images of different classes that the attack on the dense network turned."""
    records = dense.attack(study.main)
    turned = records[(records.clean_pred == records.label) & (records.adv_pred != records.label)]
    return turned.drop_duplicates("label")["index"].head(EXAMPLES).astype(int).tolist()


def _triple(axes: list[Axes], study: Study, model: Model, index: int) -> None:
    clean = study.clean_images[index].astype(float) / 255
    adv = study.adv_images[model.name][index].astype(float) / 255
    change = 0.5 + (adv - clean) / (2 * max(study.main_attack.eps, 1e-6))
    records = model.attack(study.main)
    record = records[records["index"] == index]
    words = [study.classes[int(record[side].iloc[0])] for side in ("clean_pred", "adv_pred")]
    for ax, picture, word in zip(axes, (clean, adv, change), [*words, ""], strict=True):
        shown = np.clip(picture, 0, 1).transpose(1, 2, 0)
        ax.imshow(shown[..., 0] if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=1)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_xlabel(word, fontsize=SIZES["note"], labelpad=2)


# --- weights -------------------------------------------------------------------------------------


def weights(study: Study) -> Figure | None:
    """Histograms of all weights and biases before and after, where a family has them."""
    models = [model for model in study.models if model.card.get("histogram")]
    if not models:
        return None
    rows = -(-len(models) // 2)
    figure, axes = _axes(rows, 1.9, columns=2, sharex=True, sharey=True)
    for ax, model in zip(axes, models, strict=False):
        _histogram(ax, study, model)
    for ax in axes[len(models) :]:
        ax.set_visible(False)
    figure.supylabel("parameters in a bin", fontsize=SIZES["label"])
    figure.supxlabel("value", fontsize=SIZES["label"])
    return figure


def _histogram(ax: Axes, study: Study, model: Model) -> None:
    found = model.card["histogram"]
    edges = np.linspace(found["low"], found["high"], len(found["before"]) + 1)
    ax.stairs(found["before"], edges, fill=True, color="#c8c8c8")
    ax.stairs(found["after"], edges, color=style(study, model.family)["color"], lw=1.1)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)
    same = found["before"] == found["after"]
    _title(ax, f"{_name(study, model)}: unchanged" if same else _name(study, model))
