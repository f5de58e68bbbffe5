"""Figures: pure functions of a study that return matplotlib figures; no pyplot, no global state.

What would be too many lines in one figure is drawn group by group (`Study.groups`). See
`report.drawing` for style.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.report.bits import accuracy_figure, places_figure
from advprune.report.calibration import reliability
from advprune.report.drawing import (
    GREY,
    LINES,
    SIZES,
    band,
    grid,
    legend,
    line_of,
    name_ticks,
    panels,
    percent_axis,
    percents,
    png,
    style,
    title,
)
from advprune.report.growth import course as growth
from advprune.report.masks import curves as compression
from advprune.report.randomized_figures import controls, protocol
from advprune.report.sparse_figures import over_sparsity, training
from advprune.report.study import Model, Point, Study, curve
from advprune.report.text import budget, setting_text
from advprune.report.tickets import tickets
from advprune.report.tradeoff import tradeoff
from advprune.report.transfers import heat_map

__all__ = ["figures", "png", "style"]


def figures(study: Study) -> dict[str, Figure]:
    """All figures that this study allows, by file name without ending."""
    of_group: dict[str, Callable[[Study, str], Figure | None]] = {
        "security": security,
        "steps": steps,
        "layers": layers,
        "reliability": reliability,
        "weights": weights,
    }
    of_all: dict[str, Callable[[Study], Figure | None]] = {
        "tradeoff": tradeoff,
        "transfer": heat_map,
        "compression": compression,
        "sparsity": over_sparsity,
        "sparsity-training": training,
        "tickets": tickets,
        "growth": growth,
        "images": images,
        "protocol": protocol,
        "controls": controls,
        "bitflip": accuracy_figure,
        "bitflip-places": places_figure,
    }
    made = {name: sweep(study, base) for base, name in study.each_base("sweep")}
    made |= {
        name: make(study, group)
        for kind, make in of_group.items()
        for group, name in study.each_group(kind)
    }
    made |= {name: make(study) for name, make in of_all.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


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


def sweep(study: Study, base: str) -> Figure | None:
    """Remnant accuracy over a family's setting, each attack a line, the dense network thin."""
    swept = [family for family in study.params.sweep if study.points(family, base)]
    if not swept:
        return None
    figure, axes = panels(len(swept), 2.4)
    for ax, family in zip(axes, swept, strict=True):
        _sweep_panel(ax, study, family, base)
    return figure


def _sweep_panel(ax: Axes, study: Study, family: str, base: str) -> None:
    points = study.points(family, base)
    x = _positions(ax, [point.setting for point in points])
    look, labels = style(study, family), []
    for index, attack in enumerate(study.attacks):
        rates = [remnant_accuracy(point.attack(attack)) for point in points]
        line = LINES[index % len(LINES)]
        band(ax, x, rates, look["color"])
        values = percents(rates)
        ax.plot(x, values, line, color=look["color"], marker="osD^"[index % 4], ms=4.5, lw=1.4)
        parent = remnant_accuracy(study.swept.dense(base).attack(attack))
        ax.axhline(100 * (parent.value or 0.0), color="black", lw=0.8, ls=line)
        labels.append((_edge(x, values), attack, look["color"]))
    clean = percents(_clean(study, points))
    ax.plot(x, clean, color=GREY, lw=1.2, marker="x", ms=4.5)
    labels.append((_edge(x, clean), "clean", GREY))
    _spread_labels(ax, labels)
    ax.set_xlabel(_of_base(study, family, base), fontsize=SIZES["label"])
    percent_axis(ax, "accuracy %")


def _of_base(study: Study, words: str, group: str) -> str:
    """Words, with the group in brackets where there are several."""
    return words if len(study.groups) == 1 else f"{words} ({group})"


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


# --- curves --------------------------------------------------------------------------------------


def security(study: Study, group: str) -> Figure | None:
    """Remnant accuracy over eps for the models of a group, and the difference from dense."""
    return _curves(study, group, "curve_eps", "eps", budget)


def steps(study: Study, group: str) -> Figure | None:
    """Remnant accuracy over the number of steps, and the difference from dense."""
    return _curves(study, group, "curve_steps", "steps", lambda value: f"{value:.0f}")


def _curves(
    study: Study, group: str, name: str, column: str, words: Callable[[float], str]
) -> Figure | None:
    points = curve(study.groups[group][0], name, column)
    if not points:
        return None
    figure, (top, bottom) = panels(2, 2.8, sharex=True)
    _curves_of(top, bottom, study, group, (name, column))
    name_ticks(top, [words(value) for value, _ in points])
    bottom.set_xlabel(_of_base(study, column, group), fontsize=SIZES["label"])
    bottom.set_ylabel("points from dense", fontsize=SIZES["label"])
    grid(bottom)
    percent_axis(top, "remnant accuracy %")
    legend(figure, top)
    return figure


def _curves_of(top: Axes, bottom: Axes, study: Study, group: str, what: tuple[str, str]) -> None:
    models = study.groups[group]
    parent: list[Rate] = []
    for index, model in enumerate(models):
        rates = [remnant_accuracy(records) for _, records in curve(model, *what)]
        parent = parent or rates
        x = np.arange(len(rates)) + 0.4 * ((index + 0.5) / len(models) - 0.5)
        look = style(study, model.family) | {"lw": 1.0, "ms": 5.0, "mfc": "none"}
        look["ls"] = line_of(study, models[0].base)
        top.plot(np.arange(len(rates)), percents(rates), label=model.family, **look)
        bottom.plot(x, np.subtract(percents(rates), percents(parent[: len(rates)])), **look)
    low = [100 * ((r.interval[0] or 0.0) - (r.value or 0.0)) for r in parent]
    high = [100 * ((r.interval[1] or 0.0) - (r.value or 0.0)) for r in parent]
    bottom.fill_between(range(len(parent)), low, high, color="black", alpha=0.1, lw=0)


# --- where the attack acts -----------------------------------------------------------------------

PANELS = {
    "relative_difference": "relative difference",
    "distance": "distance between distributions",
    "sigma": "sigma under attack / clean",
}


def layers(study: Study, group: str) -> Figure | None:
    """How far the main attack moves each layer's feature maps, over depth."""
    first = study.groups[group][0].layers.sort_values("depth", ignore_index=True)
    if first.empty:
        return None
    figure, axes = panels(len(PANELS), 2.3, sharex=True)
    places = {name: index for index, name in enumerate(first.layer)}
    models = study.groups[group]
    for index, model in enumerate(models):
        _layer_lines(axes, study, model, places, (index, len(models)))
    for ax, words in zip(axes, PANELS.values(), strict=True):
        title(ax, words)
        grid(ax)
    axes[-1].axhline(1, color=GREY, lw=0.8)
    axes[-1].set_xlabel(_of_base(study, "depth", group), fontsize=SIZES["label"])
    _stages(axes, first.layer.tolist())
    legend(figure, axes[0])
    return figure


def _layer_lines(
    axes: list[Axes], study: Study, model: Model, places: dict[str, int], turns: tuple[int, int]
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
    look = style(study, model.family) | {"ms": 5.5, "markevery": turns}
    look |= {
        "ls": line_of(study, model.base),
        "lw": 2.6 if model.family == "dense" else 0.9,
    }
    for ax, column in zip(axes, PANELS, strict=True):
        ax.plot(table.place, table[column], label=model.family, **look)


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

SHOWN = 10  # models at most
EXAMPLES = 2


def images(study: Study) -> Figure | None:
    """Clean and adversarial images and their difference, for two images and a few models."""
    if not study.params.active().show_images:
        return None
    models = [m for m in study.groups[study.params.bases[0]] if m.name in study.adv_images][:SHOWN]
    chosen = _examples(study, models[0]) if models else []
    if not chosen:
        return None
    figure, axes = panels(len(models), 0.98, columns=3 * len(chosen))
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


def weights(study: Study, group: str) -> Figure | None:
    """Histograms of all weights and biases before and after, of families that change them."""
    models = [model for model in study.groups[group] if _moved(model)]
    if not models:
        return None
    rows = -(-len(models) // 2)
    figure, axes = panels(rows, 1.9, columns=2, sharex=True, sharey=True)
    for ax, model in zip(axes, models, strict=False):
        _histogram(ax, study, model)
    for ax in axes[len(models) :]:
        ax.set_visible(False)
    figure.supylabel("parameters in a bin", fontsize=SIZES["label"])
    figure.supxlabel(_of_base(study, "value", group), fontsize=SIZES["label"])
    return figure


def _moved(model: Model) -> bool:
    """Whether a model's weights are others than the dense network's."""
    found = model.card.get("histogram")
    if not found:
        return False
    return model.card["prune_ratio"] > 0 or found["before"] != found["after"]


def _histogram(ax: Axes, study: Study, model: Model) -> None:
    found = model.card["histogram"]
    edges = np.linspace(found["low"], found["high"], len(found["before"]) + 1)
    ax.stairs(found["before"], edges, fill=True, color="#c8c8c8")
    ax.stairs(found["after"], edges, color=style(study, model.family)["color"], lw=1.1)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)
    title(ax, model.family)
