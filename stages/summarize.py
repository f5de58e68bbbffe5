"""Stage summarize: metrics, tables, figures and the report, from the records alone."""

from pathlib import Path

from common import ProfileOption, Workspace, script


def summarize(profile: ProfileOption = None) -> None:
    """Write metrics/<profile>/<model>.json and reports/<profile>/."""
    from advprune.report.families import read_claims
    from advprune.report.study import read_study
    from advprune.report.write import write_metrics, write_report

    workspace = Workspace.open(profile)
    study = read_study(workspace.params, workspace.place)
    write_metrics(study, workspace.place("metrics"))
    write_report(study, workspace.place("reports"), read_claims(Path("docs/families")))


if __name__ == "__main__":
    script(summarize)
