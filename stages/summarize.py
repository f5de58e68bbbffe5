"""Stage summarize: metrics, tables, figures and the report, from the records alone."""

from common import Workspace, script


def summarize() -> None:
    """Write metrics/<profile>/<model>.json and reports/<profile>/."""
    from advprune.report.read import read_run
    from advprune.report.write import write_metrics, write_report

    workspace = Workspace()
    run = read_run(workspace.params)
    write_metrics(run, workspace.place("metrics"))
    write_report(run, workspace.place("reports"))


if __name__ == "__main__":
    script(summarize)
