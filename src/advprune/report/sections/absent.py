"""Models, studies and transfer that the settings declare and that have not been run."""

import pandas as pd

from advprune.report.section import Part, Parts, Run, section


@section("Not run", order=12)
def absent(run: Run) -> Parts:
    """One row per missing model, study or transfer, with the command that adds it."""
    yield Part(
        "Not run",
        "Parts of the settings that have not been run. Without transfer, robust accuracy and "
        "distance count only attacks on the model itself.",
        pd.DataFrame(
            {"missing": kind, "name": name or "all models", "command": f"dvc repro {stage}"}
            for kind, name, stage in run.absent
        ),
    )
