"""Figures of SAP's published protocol: accuracy over the budget."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from advprune.core.params import Member
from advprune.evaluate.measures import remnant_accuracy
from advprune.report.drawing import (
    MARKERS,
    SIZES,
    legend,
    line_of,
    name_ticks,
    panels,
    percent_axis,
    percents,
    style,
    title,
)
from advprune.report.randomized import FGSM, ITERATIVE, SAP, members, on_convolutions, over_budgets
from advprune.report.study import Study
from advprune.report.text import budget

PUBLISHED = (None, SAP, "dropout")  # families of the published figure; the others are controls


def protocol(study: Study) -> Figure | None:
    """The dense networks, SAP and dropout over the budget, by one step and by several."""
    return _figure(study, _is_published)


def controls(study: Study) -> Figure | None:
    """The stochastic controls and the variant on convolutions beside the first dense network."""
    found = members(study)
    if all(_is_published(member) for _, member in found.values()):
        return None
    reference = next((m for _, m in found.values() if m.family is None), None)
    return _figure(study, lambda member: member is reference or not _is_published(member))


def _is_published(member: Member) -> bool:
    return member.family in PUBLISHED and not on_convolutions(member)


def _figure(study: Study, wanted: Callable[[Member], bool]) -> Figure | None:
    shown = [name for name, (_, member) in members(study).items() if wanted(member)]
    if not shown:
        return None
    settings, looks = study.params.active().protocol, _looks(study, shown)
    titles = {
        FGSM: f"FGSM, {settings.draws} draws",
        ITERATIVE: f"iterative, {settings.iterative.steps} steps",
    }
    figure, axes = panels(2, 2.7, sharex=True)
    for ax, (attack, words) in zip(axes, titles.items(), strict=True):
        _lines(ax, study, attack, looks)
        percent_axis(ax, "accuracy %")
        title(ax, words)
    name_ticks(axes[1], [budget(eps) for eps in sorted(settings.eps)])
    axes[1].set_xlabel("eps", fontsize=SIZES["label"])
    legend(figure, axes[0])
    return figure


def _lines(ax: Axes, study: Study, attack: str, looks: dict[str, dict[str, Any]]) -> None:
    budgets = sorted(study.params.active().protocol.eps)
    for name, look in looks.items():
        found = over_budgets(study, name, attack)
        x = [budgets.index(eps) for eps in found]
        ax.plot(x, percents([remnant_accuracy(t) for t in found.values()]), label=name, **look)


def _looks(study: Study, names: list[str]) -> dict[str, dict[str, Any]]:
    """Colour by family, the line by recipe; members of one family from light to full."""
    known, looks = members(study), {}
    for place, name in enumerate(names):
        recipe, member = known[name]
        alike = [n for n in names if known[n][0] == recipe and known[n][1].family == member.family]
        share = (alike.index(name) + 1) / len(alike)
        colour = style(study, member.family or "dense")["color"]
        looks[name] = {
            "color": _lighter(colour, 0.35 + 0.65 * share),
            "ls": line_of(study, recipe),
            "marker": MARKERS[place % len(MARKERS)] if member.family else "o",
            "lw": 1.3,
            "ms": 5.0,
            "mfc": "none",
        }
    return looks


def _lighter(colour: str, strength: float) -> tuple[float, ...]:
    """A colour mixed with white."""
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))
