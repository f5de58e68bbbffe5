"""Clean against robust accuracy: what each model gives for what."""

import numpy as np
from matplotlib.figure import Figure

from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.evaluate.verdict import LEVELS
from advprune.report.drawing import COLOURS, SIZES, grid, panels
from advprune.report.study import Model, Study
from advprune.report.summary import group_of

SIGNS = dict(zip(LEVELS.values(), "o^X", strict=True))  # by verdict, as matplotlib's markers
SMALLEST, LARGEST = 7.0, 18.0  # points across, at no zeros and at nothing but zeros
SPAN = 10.0  # percent that the axis of robust accuracy shows at least


def axes_of(study: Study, model: Model) -> tuple[Rate, Rate]:
    """Clean and robust accuracy."""
    return clean_accuracy(model.attack(study.main)), remnant_accuracy(study.robust(model))


def robust_axis(study: Study) -> tuple[float, float] | None:
    """Ends of the axis of robust accuracy where all models are alike; None: as the values lie.

    Without it equal values make an axis of thousandths, half of it below zero.
    """
    values = [100 * (axes_of(study, model)[1].value or 0.0) for model in study.models]
    if max(values) - min(values) >= SPAN:
        return None
    bottom = max((min(values) + max(values) - SPAN) / 2, -SPAN / 20)
    return bottom, bottom + SPAN


def size_of(model: Model) -> float:
    """The diameter of a model's marker, growing with its sparsity."""
    return SMALLEST + (LARGEST - SMALLEST) * float(model.card["sparsity"])


def colour_of(study: Study, model: Model) -> str:
    """The colour of the group that a model is shown in."""
    return COLOURS[list(study.groups).index(group_of(study, model)) % len(COLOURS)]


def tradeoff(study: Study) -> Figure | None:
    """Robust over clean accuracy: colour by group, marker by verdict, size by sparsity."""
    if len(study.models) < 2:
        return None
    figure, (ax,) = panels(1, 3.6)
    for group in study.groups:
        for level, sign in SIGNS.items():
            chosen = [m for m in study.models if _is(study, m, group, level)]
            points = [axes_of(study, model) for model in chosen]
            ax.scatter(
                [100 * (clean.value or 0.0) for clean, _ in points],
                [100 * (robust.value or 0.0) for _, robust in points],
                s=np.square([size_of(model) for model in chosen]),
                marker=sign,
                facecolors="none",
                edgecolors=[colour_of(study, model) for model in chosen],
                label=f"{group}, {level}" if chosen else "_",
            )
    ax.set_xlabel("clean accuracy %", fontsize=SIZES["label"])
    ax.set_ylabel("robust accuracy %", fontsize=SIZES["label"])
    if ends := robust_axis(study):
        ax.set_ylim(*ends)
    grid(ax)
    figure.legend(loc="outside upper center", ncols=2, fontsize=SIZES["tick"], frameon=False)
    return figure


def _is(study: Study, model: Model, group: str, level: str) -> bool:
    return group_of(study, model) == group and study.verdict(model).level == level
