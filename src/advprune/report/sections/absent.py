"""What the settings name and this run lacks: models, studies, transfer."""

from collections.abc import Iterator

import pandas as pd

from advprune.report.section import Part, Run, section


@section("Not run", order=12)
def absent(run: Run) -> Iterator[Part]:
    """One row for each, with the command that adds it; nothing for a whole run."""
    yield Part(
        "Not run",
        "What the settings name and this run lacks. Where transfer is missing, robust accuracy and "
        "distance count only attacks on the model itself.",
        pd.DataFrame(
            {"missing": one.kind, "name": one.name or "all models"}
            | {"command": f"dvc repro {one.stage}"}
            for one in run.absent
        ),
    )
