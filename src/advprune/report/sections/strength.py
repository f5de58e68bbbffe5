"""How strong the suite is: beside official AutoAttack, as bench/strength.py measured it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from advprune.report.run import Run
from advprune.report.section import Part, section

MEASURED = Path("bench/strength.json")


@section("Strength", order=105)
def strength(run: Run) -> Iterator[Part]:
    """One row per network; nothing for a profile that was not measured."""
    path = run.folder / MEASURED
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("profile") == run.params.profile:
        yield Part(
            "Beside AutoAttack",
            "Ours: suite, probes and curves; beside official AutoAttack (standard), on one thread "
            f"({MEASURED}). Images are rounded to 8 bits and scored on the model itself. Passes: "
            "forward and backward, per image.",
            pd.DataFrame(found["rows"]),
        )
