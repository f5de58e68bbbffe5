"""Early-Growth: which channels a binary network gets, and whether that helps beyond width.

Rakin et al. (RA-BNN, 2021) compare grown networks with the narrow one they grew from. The control
here is a network that is wider everywhere, with as many parameters.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.evaluate.compare import Compared, Comparison
from advprune.evaluate.faults import compare_flips
from advprune.report.chart import Chart
from advprune.report.compared import columns, compared, explained, jointly
from advprune.report.results import rated
from advprune.report.run import Model, Run
from advprune.report.section import Part, section

SHARE = "density_"  # before a group's name: the column of its share of channels that are on
BETWEEN, INSIDE, WHOLE = "channels between blocks", "channels inside blocks", "accuracy"


@section("Early-Growth", order=85)
def growth(run: Run) -> Iterator[Part]:
    """Grown against uniformly wider networks, the channels, and the course of growth."""
    grown = [model for model in run.models if model.card.get("growth")]
    yield Part(
        "Does growth help beyond width?",
        "Grown: channels chosen by Early-Growth; uniform: every layer equally wider, each trained "
        "once. McNemar on the same images, Gehan's test for flips to chance. "
        f"{explained('the measures of a pair')}",
        beside(run, grown),
    )
    for model in grown:
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


def beside(run: Run, grown: list[Model]) -> pd.DataFrame:
    """Each grown network with each uniform one: accuracies and flips to chance."""

    def is_uniform(model: Model) -> bool:
        return getattr(run.params.setting(model.name), "channels", None) == "uniform"

    pairs = [(one, other) for one in grown for other in run.models if is_uniform(other)]
    return pd.DataFrame(row for pair in pairs for row in _pair(run, *pair))


def _pair(run: Run, one: Model, other: Model) -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {"grown": one.name, "uniform": other.name}
    names |= {f"parameters:{name}": run.model(of).card["parameters"] for name, of in names.items()}
    first, second = run.robust(one), run.robust(other)
    tests: dict[str, Compared] = {
        "clean accuracy": compared(run, first, second, "clean"),
        "robust accuracy": compared(run, first, second),
    }
    flips = {"grown": run.flips(one), "uniform": run.flips(other)}
    known = {name: reached for name, reached in flips.items() if reached}
    if len(known) == 2:
        tests["flips to chance"] = compare_flips(*known.values())
    for measure, test in jointly(tests).items():
        row = names | {"measure": measure}
        if isinstance(test, Comparison):
            row |= rated("accuracy:grown", test.first) | rated("accuracy:uniform", test.second)
        else:
            row |= {f"at_least_flips:{name}": reached.least for name, reached in known.items()}
        yield row | columns(test)


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
