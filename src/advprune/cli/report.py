"""`advprune report`: the report and the metrics, from the records of a run."""

from pathlib import Path
from typing import Annotated

import typer

from advprune.cli.options import ProfileOption


def report(
    profile: ProfileOption = None,
    docs: Annotated[
        bool,
        typer.Option(
            "--docs", help="Write the generated parts of README.md and docs/ instead of a report."
        ),
    ] = False,
) -> None:
    """Write metrics and report again from the records of a run, as the summarize stage does.

    Reads data, runs and records of the profile, as `dvc repro` leaves them. Writes
    `metrics/<profile>/` and `reports/<profile>/`, and prints the path of the page.
    """
    if docs:
        from advprune.report.docs import fill

        print(*fill(), sep="\n")
        return
    from advprune.core.params import load
    from advprune.report.read import read_run
    from advprune.report.write import write_metrics, write_report

    run = read_run(load(profile=profile))
    write_metrics(run, Path("metrics") / run.params.profile)
    write_report(run, place := Path("reports") / run.params.profile)
    print(place / "report.html")
