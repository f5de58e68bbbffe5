"""`advprune report`: the report and the metrics, from the records of a run."""

from advprune.cli.options import ProfileOption


def report(profile: ProfileOption = None) -> None:
    """Write the metrics and the report anew from the records of a run: the summarize stage.

    Needs data, models, records and transfers of the profile, as `dvc repro` leaves them. Writes
    `metrics/<profile>/` and `reports/<profile>/`, and prints where the page lies.
    """
    from advprune.cli.repository import Repository
    from advprune.report.study import read_study
    from advprune.report.write import write_metrics, write_report

    repository = Repository(profile)
    study = read_study(repository.params, repository.place)
    write_metrics(study, repository.place("metrics"))
    write_report(study, repository.place("reports"))
    print(repository.place("reports", "report.html"))
