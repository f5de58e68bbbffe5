"""Writing the folders of a report and of metrics, whole or not at all."""

from functools import partial
from pathlib import Path

from advprune.core.ahead import ahead
from advprune.core.files import atomic, write_json
from advprune.core.params import FILE
from advprune.report.chart_png import png
from advprune.report.formats import budgets_in
from advprune.report.page import charts, html, report_markdown, shown_sections
from advprune.report.results import CLAIMS, RESULTS, declared, metrics_of
from advprune.report.revision import settings_of
from advprune.report.run import Run
from advprune.report.sections.claims import outcomes


def write_report(run: Run, folder: Path) -> None:
    """Replace a report: page, markdown, figures/*.png, results.csv, params.yaml, claims.csv."""
    with budgets_in(run.main_attack.norm), atomic(folder) as temporary:
        found = shown_sections(run)
        temporary.mkdir()
        (temporary / "figures").mkdir()
        drawn = charts(found).items()
        made = {"report.html": lambda: html(run, found).encode()}  # the longest first
        made |= {f"figures/{name}.png": partial(png, chart, run.places) for name, chart in drawn}

        def write(name: str) -> None:
            if not (temporary / name).exists():
                (temporary / name).write_bytes(made[name]())

        pieces = [partial(write, name) for name in made]
        ahead("report", pieces)
        for piece in pieces:
            piece()
        declared(run).to_csv(temporary / RESULTS, index=False, lineterminator="\n")
        if run.claims:
            outcomes(run).to_csv(temporary / CLAIMS, index=False, lineterminator="\n")
        (temporary / FILE).write_text(settings_of(run.params), encoding="utf-8")
        (temporary / "report.md").write_text(report_markdown(run, found), encoding="utf-8")


def write_metrics(run: Run, folder: Path) -> None:
    """Replace the metrics: `<model>.json` for each model."""
    with atomic(folder) as temporary:
        temporary.mkdir()
        for name, found in metrics_of(declared(run)).items():
            write_json(temporary / f"{name}.json", found)
