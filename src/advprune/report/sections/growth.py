"""Early-Growth (Rakin et al., RA-BNN, 2021): which channels a binary network gets.

Whether that helps beyond width is among the published claims.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.report.chart import Chart
from advprune.report.run import Run
from advprune.report.section import Part, section

SHARE = "density_"  # before a group's name: the column of its share of channels that are on
BETWEEN, INSIDE, WHOLE = "channels between blocks", "channels inside blocks", "accuracy"


@section("Early-Growth", order=85)
def growth(run: Run) -> Iterator[Part]:
    """The channels of each grown network, and the course of growth."""
    for model in (model for model in run.models if model.card.get("growth")):
        found, axes = model.card["growth"], ("epoch", "share", "channels", "of")
        yield Part(
            f"Channels of {model.family}",
            f"{model.name}: a network several times as wide is trained with a gate on every "
            "channel; the channels whose gates are open at the end are those of the grown network, "
            "which is trained from scratch. Share: of the wide network's channels.",
            channels(found),
            Chart(f"growth-{model.name}", "line", course(found), *axes),
            folded=True,
        )


def groups(history: pd.DataFrame) -> list[str]:
    """The groups of channels: the stem and the stages, then those inside blocks."""
    return [name.removeprefix(SHARE) for name in map(str, history) if name.startswith(SHARE)]


def channels(found: dict[str, Any]) -> pd.DataFrame:
    """Each group of channels: how many the base network has, and how many the grown one."""
    history = pd.DataFrame(found["history"])
    grown, rows = (*found["stages"], *found["inner"]), []
    for group, before, after in zip(groups(history), found["base"], grown, strict=True):
        stage, _, block = group.partition("_")  # `layer1_1`: layer1, inside block 2
        name = f"{stage}, inside block {int(block) + 1}" if block else stage
        row = {"channels": name, "base_network": int(before), "grown": int(after)}
        rows.append(row | {"share": float(history[SHARE + group].iloc[-1])})
    return pd.DataFrame(rows)


def course(found: dict[str, Any]) -> pd.DataFrame:
    """Shares of channels that are on over epochs, inside blocks the mean of a stage's blocks."""
    history = pd.DataFrame(found["history"])
    names = groups(history)
    stages = [name for name in names if "_" not in name]
    blocks = {stage: [SHARE + n for n in names if n.startswith(f"{stage}_")] for stage in stages}
    lines = {(BETWEEN, "all"): history.density}
    lines |= {(BETWEEN, "of the base network"): history.base_density}
    lines |= {(BETWEEN, stage): history[SHARE + stage] for stage in stages}
    lines |= {(INSIDE, stage): history[own].mean(axis=1) for stage, own in blocks.items() if own}
    lines |= {(WHOLE, "validation"): history.val_accuracy}
    lines |= {(WHOLE, "training"): history.train_accuracy}
    tables = [
        pd.DataFrame({"epoch": history.epoch, "share": values, "channels": name, "of": of})
        for (of, name), values in lines.items()
    ]
    return pd.concat(tables, ignore_index=True)
