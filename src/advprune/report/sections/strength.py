"""How strong the suite is: beside official AutoAttack, as bench/strength.py measured it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from advprune.report.formats import NOTHING
from advprune.report.run import Run
from advprune.report.section import Part, section

MEASURED = "bench/strength*.json"  # one file per profile


@section("Strength of the attacks", order=22)
def strength(run: Run) -> Iterator[Part]:
    """Three rows per network; nothing for a profile that was not measured."""
    for path in sorted(run.folder.glob(MEASURED)):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["profile"] != run.params.profile:
            continue
        yield Part(
            "Beside AutoAttack",
            "suite: the attacks of the suite alone. everything: all that a row of the leaderboard "
            "takes, published tables, curves and the verdict's probes as well. AutoAttack: the "
            f"official one (standard), on the same images (bench/{path.name}). Images are rounded "
            "to 8 bits and scored on the model itself. Passes: forward and backward, per image; "
            f"their share is of AutoAttack's. {found['about']}",
            pd.DataFrame(found["rows"]),
        )


def beside_autoattack(folder: Path) -> str:
    """For docs/measurement.md: every network that was measured under any profile, in one table."""
    rows = []
    for path in sorted(folder.glob(MEASURED)):
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, own in pd.DataFrame(found["rows"]).groupby("model", sort=False):
            row: dict[str, Any] = {"profile": found["profile"], "model": name, "n": own.n.iloc[0]}
            for one in own.to_dict("records"):
                left = f"{one['n'] * one['robust_accuracy']:.0f}"
                row[one["attacks"]] = f"{left} ({100 * one['passes_share']:.0f} %)"
            rows.append(row)
    columns = ["profile", "model", "n", "AutoAttack", "suite", "everything"]
    table = pd.DataFrame(rows, columns=columns)
    return table.fillna(NOTHING).to_markdown(index=False, disable_numparse=True)
