"""`advprune report`: the report and the metrics, from the records of a run."""

from pathlib import Path

from advprune.cli.options import ProfileOption


def report(profile: ProfileOption = None) -> None:
    """Write metrics and report anew from the records of a run: the summarize stage.

    Reads data, runs, transfers and studies of the profile, as `dvc repro` leaves them. Writes
    `metrics/<profile>/` and `reports/<profile>/`, and prints where the page lies.
    """
    from advprune.core.params import load
    from advprune.report.read import read_run
    from advprune.report.write import write_metrics, write_report

    run = read_run(load(profile=profile))
    write_metrics(run, Path("metrics") / run.params.profile)
    write_report(run, place := Path("reports") / run.params.profile)
    print(place / "report.html")
