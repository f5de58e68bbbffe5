"""Early-Growth: which channels a binary network gets, and whether that helps beyond width.

Rakin et al. (RA-BNN, 2021) compare grown networks with the narrow one they grew from. The control
here is a network that is wider everywhere, with as many parameters.
"""

from typing import Any

import pandas as pd

from advprune.evaluate.compare import Compared, Comparison, corrected
from advprune.evaluate.faults import compare_flips
from advprune.report.chart import Chart
from advprune.report.compared import columns, compared, explained
from advprune.report.results import rated
from advprune.report.run import Model, Run
from advprune.report.section import Part, section

SHARE = "density_"  # before a group's name: the column of its share of channels that are on
SIDES = {"clean": "clean accuracy", "adv": "robust accuracy"}


@section("Early-Growth", order=85)
def growth(run: Run) -> list[Part]:
    """Grown against uniformly wider networks, the channels, and the course of growth."""
    grown = [model for model in run.models if model.card.get("growth")]
    parts = []
    if len(table := beside(run, grown)):
        text = (
            "Grown: channels chosen by Early-Growth; uniform: every layer equally wider. p: "
            "McNemar on the same images, and Gehan's test for flips to chance. "
            f"{explained('the measures of a pair')} Each network was trained once."
        )
        parts.append(Part("Does growth help beyond width?", text, table))
    for model in grown:
        found = model.card["growth"]
        text = (
            f"{model.name}: a network several times as wide is trained with a gate on every "
            "channel; the channels whose gates are open at the end are those of the grown network, "
            "which is trained from scratch. Share: of the wide network's channels."
        )
        name, axes = f"growth-{model.name}", ("epoch", "share", "channels")
        chart = Chart(name, "line", course(found), *axes, panel="of")
        parts.append(Part(f"Channels of {model.family}", text, channels(found), chart, folded=True))
    return parts


def beside(run: Run, grown: list[Model]) -> pd.DataFrame:
    """Each grown network with each uniform one: accuracies and flips to chance."""
    rows = []
    for one in grown:
        for other in run.models:
            if getattr(run.params.setting(other.name), "channels", None) == "uniform":
                rows += _pair(run, one, other)
    return pd.DataFrame(rows)


def _pair(run: Run, one: Model, other: Model) -> list[dict[str, Any]]:
    who = {"grown": one.name, "uniform": other.name}
    who |= {f"parameters:{name}": run.model(of).card["parameters"] for name, of in who.items()}
    ours, theirs = run.flips(one), run.flips(other)
    tests: list[Compared] = [
        compared(run, run.robust(one), run.robust(other), side) for side in SIDES
    ]
    rows: list[dict[str, Any]] = [who | {"measure": measure} for measure in SIDES.values()]
    if ours and theirs:
        tests.append(compare_flips(ours, theirs))
        least = {"at_least_flips:grown": ours.least, "at_least_flips:uniform": theirs.least}
        rows.append(who | {"measure": "flips to chance"} | least)
    for row, test in zip(rows, corrected(tests), strict=True):
        if isinstance(test, Comparison):
            row |= rated("accuracy:grown", test.first) | rated("accuracy:uniform", test.second)
        row |= columns(test)
    return rows


def groups(history: pd.DataFrame) -> list[str]:
    """The groups of channels: the stem and the stages, then those inside blocks."""
    return [name.removeprefix(SHARE) for name in map(str, history) if name.startswith(SHARE)]


def channels(found: dict[str, Any]) -> pd.DataFrame:
    """Each group of channels: how many the base network has, and how many the grown one."""
    history = pd.DataFrame(found["history"])
    last, grown = history.iloc[-1], (*found["stages"], *found["inner"])
    rows = []
    for group, before, after in zip(groups(history), found["base"], grown, strict=True):
        stage, _, block = group.partition("_")  # `layer1_1`: layer1, inside block 2
        name = f"{stage}, inside block {int(block) + 1}" if block else stage
        row = {"channels": name, "base_network": int(before), "grown": int(after)}
        rows.append(row | {"share": float(last[SHARE + group])})
    return pd.DataFrame(rows)


def course(found: dict[str, Any]) -> pd.DataFrame:
    """Shares of channels that are on over epochs, inside blocks the mean of a stage's blocks."""
    history = pd.DataFrame(found["history"])
    between, inside, wide = "channels between blocks", "channels inside blocks", "accuracy"
    base = ("of the base network", between, history.base_density)
    lines = [("all", between, history.density), base]
    for group in groups(history):
        if "_" not in group:
            lines.append((group, between, history[SHARE + group]))
            blocks = [SHARE + name for name in groups(history) if name.startswith(f"{group}_")]
            if blocks:
                lines.append((group, inside, history[blocks].mean(axis=1)))
    lines.append(("validation", wide, history.val_accuracy))
    lines.append(("training", wide, history.train_accuracy))
    tables = [
        pd.DataFrame({"epoch": history.epoch, "share": values, "channels": name, "of": of})
        for name, of, values in lines
    ]
    order = {of: place for place, of in enumerate((between, inside, wide))}
    rows = pd.concat(tables, ignore_index=True)
    return rows.sort_values("of", key=lambda of: of.map(order), kind="stable")
