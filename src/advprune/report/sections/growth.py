"""Early-Growth (Rakin et al., RA-BNN, 2021): which channels a binary network gets.

Whether that helps beyond width is among the published claims.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.report.section import Part, Run, section

SHARE = "density_"  # before a group's name: the column of its share of open gates


@section("Early-Growth", order=85)
def growth(run: Run) -> Iterator[Part]:
    """The channels of each grown network."""
    for model in (model for model in run.models if model.card.get("growth")):
        yield Part(
            f"Channels of {model.family}",
            f"{model.name}: a network several times as wide is trained with a gate on every "
            "channel. The channels whose gates are open at the end make the grown network, which "
            "is trained from scratch. Shares are of the wide network's channels.",
            channels(model.card["growth"]),
            folded=True,
        )


def channels(found: dict[str, Any]) -> pd.DataFrame:
    """Each group of channels: how many the base network has, and how many the grown one."""
    last = {name: share for name, share in found["history"][-1].items() if name.startswith(SHARE)}
    grown, rows = (*found["stages"], *found["inner"]), []
    for (group, share), before, after in zip(last.items(), found["base"], grown, strict=True):
        stage, _, block = group.removeprefix(SHARE).partition("_")  # `layer1_1`: inside block 2
        name = f"{stage}, inside block {int(block) + 1}" if block else stage
        row = {"channels": name, "base_network": int(before), "grown": int(after)}
        rows.append(row | {"share": float(share)})
    return pd.DataFrame(rows)
