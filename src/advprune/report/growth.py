"""Early-Growth in the report: how channels come and go, and whether it helps beyond width.

A grown binary network stands beside a uniform one of its size.
Rakin et al. (RA-BNN, 2021) compare grown networks with the narrow one that they grew from, which
leaves open whether the right channels were found or any would have done.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from advprune.evaluate.compare import Comparison, compare, holm
from advprune.evaluate.faults import FlipComparison, compare_flips
from advprune.report.bits import needed
from advprune.report.drawing import (
    COLOURS,
    GREY,
    LINES,
    SIZES,
    legend,
    panels,
    percent_axis,
    title,
)
from advprune.report.finding import Finding, paragraphs, spell
from advprune.report.study import Model, Study
from advprune.report.text import count, p_value, percent

ACCURACIES = {"clean": "clean accuracy", "adv": "robust accuracy"}
FLIPS = "flips to chance"
SHARE = "density_"  # a group's column of the history: which share of its channels is on


@dataclass(frozen=True, eq=False)
class Beside:
    """A grown network and a uniform one; p-values hold for the three measures together (Holm).

    flips: None where either is no entry of `bitflip`.
    """

    grown: Model
    uniform: Model
    accuracies: dict[str, Comparison]
    flips: FlipComparison | None

    @property
    def words(self) -> dict[str, str]:
        """By measure: more, less, or that no difference is shown."""
        tests = {ACCURACIES[side]: (t.differs, t.better) for side, t in self.accuracies.items()}
        if self.flips is not None:
            tests[FLIPS] = self.flips.differs, self.flips.harder
        return {
            name: ("more" if more else "less") if differs else "no difference shown"
            for name, (differs, more) in tests.items()
        }


def beside(study: Study) -> list[Beside]:
    """Each grown binary network with each uniform one."""
    by_channels: dict[str, list[Model]] = {"grown": [], "uniform": []}
    for name, setting in study.params.binary.items():
        if setting.channels in by_channels:
            found = study.model(f"{name}-{study.params.bases[0]}")
            by_channels[setting.channels].append(found)
    return [_beside(study, g, u) for g in by_channels["grown"] for u in by_channels["uniform"]]


def _beside(study: Study, grown: Model, uniform: Model) -> Beside:
    tests = {side: compare(study.robust(grown), study.robust(uniform), side) for side in ACCURACIES}
    ours, theirs = study.flips(grown), study.flips(uniform)
    flips = compare_flips(ours, theirs) if ours and theirs else None
    p_values = [test.p for test in tests.values()] + ([flips.p] if flips else [])
    *accuracies, last = [*holm(p_values), *([] if flips else [1.0])]
    return Beside(
        grown,
        uniform,
        {s: replace(t, p=p) for (s, t), p in zip(tests.items(), accuracies, strict=True)},
        flips and replace(flips, p=last),
    )


def beyond_width(study: Study) -> Iterator[Finding]:
    """The answer for each pair."""
    for pair in beside(study):
        words, grown, uniform = pair.words, pair.grown.family, pair.uniform.family
        answer = "; ".join(f"{name}: {word}" for name, word in words.items())
        text = paragraphs(
            [
                f"{grown} has {pair.grown.card['parameters']:,} parameters in channels that "
                f"Early-Growth chose, {uniform} {pair.uniform.card['parameters']:,} in layers that "
                "are all equally wider."
            ],
            [_accuracy_words(pair, side) for side in ACCURACIES],
            list(_flip_words(study, pair)),
            [
                f"p-values hold for {count(len(words), 'measure')} together (Holm); accuracies by "
                "McNemar's test on the same images. Each network was trained once."
            ],
        )
        yield Finding(
            f"Does growth help beyond width? {grown} against {uniform}: {answer}", text, words
        )


def _accuracy_words(pair: Beside, side: str) -> str:
    test, name = pair.accuracies[side], ACCURACIES[side].capitalize()
    at_chance = f" ({pair.grown.family} is at chance when clean)" if test.void else ""
    return (
        f"{name}: {spell(test.first)} against {spell(test.second)} ({p_value(test.p)}){at_chance}."
    )


def _flip_words(study: Study, pair: Beside) -> Iterator[str]:
    ours, theirs = study.flips(pair.grown), study.flips(pair.uniform)
    if pair.flips and ours and theirs:
        yield f"Flips to chance: {needed(ours)} against {needed(theirs)} ({p_value(pair.flips.p)})."


# --- the course of growth ------------------------------------------------------------------------


def history(study: Study) -> pd.DataFrame:
    """A row an epoch of Early-Growth: shares of channels that are on, loss and accuracies."""
    return pd.DataFrame(study.growth.get("history", []))


def channel_table(study: Study) -> pd.DataFrame:
    """Each group of channels: how many the base network has, and how many were on in the end."""
    rows, found = history(study), study.growth
    if rows.empty:
        return pd.DataFrame()
    last, grown = rows.iloc[-1], (*found["stages"], *found["inner"])
    return pd.DataFrame(
        [
            {
                "channels": _named(group),
                "base network": f"{before}",
                "grown": f"{after}",
                "of the wide network's %": percent(last[SHARE + group]),
            }
            for group, before, after in zip(_groups(rows), found["base"], grown, strict=True)
        ]
    )


def course(study: Study) -> Figure | None:
    """Which share of the wide network's channels is on over epochs, and its accuracy."""
    rows = history(study)
    if rows.empty:
        return None
    figure, axes = panels(3, 2.4, sharex=True)
    streams, inside, accuracy = axes
    stages = [group for group in _groups(rows) if "_" not in group]
    for ax in (streams, inside):
        ax.axhline(100 / study.params.growth.factor, color="black", lw=0.8, ls=":")
        percent_axis(ax, "channels %")
    streams.plot(rows.epoch, 100 * rows.density, color="black", lw=2.0, label="all")
    own: dict[str, Any] = {"color": GREY, "lw": 1.4, "ls": "--"}
    streams.plot(rows.epoch, 100 * rows.base_density, label="of the base", **own)
    for group in _groups(rows):
        stage, _, block = group.partition("_")
        look: dict[str, Any] = {"color": COLOURS[stages.index(stage)], "lw": 1.4}
        ax, line = (inside, LINES[int(block) % len(LINES)]) if block else (streams, "-")
        ax.plot(rows.epoch, 100 * rows[SHARE + group], ls=line, label=group, **look)
    for column, line in (("val_accuracy", "-"), ("train_accuracy", "--")):
        accuracy.plot(rows.epoch, 100 * rows[column], color="black", lw=1.4, ls=line, label=column)
    percent_axis(accuracy, "accuracy %")
    names = ("channels between blocks", "channels inside blocks", "the wide network")
    for ax, name in zip(axes, names, strict=True):
        title(ax, name)
    accuracy.set_xlabel("epoch", fontsize=SIZES["label"])
    legend(figure, streams)
    return figure


def _groups(rows: pd.DataFrame) -> list[str]:
    """Names of the groups of channels: the stem and the stages, then those inside blocks."""
    return [name.removeprefix(SHARE) for name in map(str, rows) if name.startswith(SHARE)]


def _named(group: str) -> str:
    stage, _, block = group.partition("_")
    return f"{stage}, inside block {int(block) + 1}" if block else stage
