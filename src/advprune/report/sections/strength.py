"""How strong the suite is: beside official AutoAttack, as bench/strength.py measured it."""

import json
from collections.abc import Iterator

import pandas as pd

from advprune.report.run import Run
from advprune.report.section import Part, section

MEASURED = "bench/strength*.json"  # one file per profile


@section("Strength of the attacks", order=22)
def strength(run: Run) -> Iterator[Part]:
    """One row per network; nothing for a profile that was not measured."""
    for path in sorted(run.folder.glob(MEASURED)):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["profile"] != run.params.profile:
            continue
        machine = found.get("machine", "one thread")
        yield Part(
            "Beside AutoAttack",
            f"Ours: suite, probes and curves; beside official AutoAttack (standard), on {machine} "
            f"(bench/{path.name}). Images are rounded to 8 bits and scored on the model itself. "
            "Passes: forward and backward, per image.",
            pd.DataFrame(found["rows"]),
        )
