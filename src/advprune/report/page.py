"""The report of a run: its parts as one self-contained HTML file, and as GitHub's markdown."""

import base64
import platform
from importlib.metadata import version
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from advprune import __version__
from advprune.report.chart import Chart
from advprune.report.chart_live import library, live
from advprune.report.chart_png import png
from advprune.report.formats import HINTS, code, heading, markdown, sort_value, texts
from advprune.report.run import Run
from advprune.report.section import Part, sections
from advprune.report.summary import OF_ONE, QUESTION, summary

CHOSEN = ("recipe", "bits", "against_dense", "verdict")  # columns by which rows can be filtered
PACKAGES = ("torch", "numpy", "scipy", "pandas")


class Column(NamedTuple):
    """A heading, its explanation, whether rows are filtered by it, and how its texts are shown."""

    name: str
    hint: str
    chosen: bool
    look: str


Rows = list[tuple[tuple[str, float | str | None], ...]]  # a cell: its text, its value for sorting


class Shown(NamedTuple):
    """A section that has something to show, and its parts."""

    id: str
    title: str
    parts: list[Part]


def shown_sections(run: Run) -> list[Shown]:
    """All sections that have parts, in order."""
    found = [Shown(one.id, one.title, one.parts(run)) for one in sections()]
    return [one for one in found if one.parts]


def charts(found: list[Shown]) -> dict[str, Chart]:
    """All charts by name; ValueError where two have the same."""
    named: dict[str, Chart] = {}
    for chart in (part.chart for one in found for part in one.parts if part.chart is not None):
        if chart.name in named:
            raise ValueError(f"two charts are called {chart.name!r}")
        named[chart.name] = chart
    return named


def html(run: Run, found: list[Shown], about: str = "") -> str:
    """The report as one HTML file; all text is escaped. about: the title of a page about one
    network, which stands alone; else it is the profile's."""
    named = charts(found)
    drawn = {name: live(c, run.places) for name, c in named.items() if c.kind != "images"}
    images = {name: png(c, run.places) for name, c in named.items() if c.kind == "images"}
    pictures = {name: base64.b64encode(image).decode() for name, image in images.items()}
    bokeh = Markup(library() if drawn else "")
    more = {"plots": drawn, "bokeh": bokeh, "pictures": pictures, "about": about}
    items = {name: plot["item"] for name, plot in drawn.items()}
    return _render("page.html.j2", run, found, **more, items=items)


def report_markdown(run: Run, found: list[Shown]) -> str:
    """The report as markdown, figures by relative path; all text is escaped."""
    return _render("report.md.j2", run, found)


def _render(template: str, run: Run, found: list[Shown], **more: Any) -> str:
    is_html = template.endswith(".html.j2")
    environment = Environment(
        loader=PackageLoader("advprune.report", "."),
        autoescape=is_html,
        finalize=None if is_html else lambda v: v if isinstance(v, Markup) else markdown(v),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Bokeh names an object where it first comes: in the order of writing, not of the alphabet.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    environment.filters |= {"grid": grid, "table": markdown_table}
    origin = f"Data: {run.source}, n = {run.n} test images. {run.profile.note}".strip()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return environment.get_template(template).render(
        profile=run.params.profile,
        origin=origin,
        heading="Adversarial robustness" + " under compression" * (len(run.models) > 1),
        question=QUESTION if len(run.models) > 1 else OF_ONE,
        summary=summary(run),
        sections=found,
        made_with=f"advprune {__version__}, Python {platform.python_version()}, {packages}",
        **more,
    )


def grid(table: pd.DataFrame) -> tuple[list[Column], Rows]:
    """A table of raw numbers as the page shows it, without columns that hold no value."""
    read = texts(table)
    kept = [c for c in map(str, read) if table[c].map(sort_value).notna().any()]
    columns = []
    for c in kept:  # sentences are notes, longer figures may wrap, a name is not broken
        longest = int(read[c].str.len().max()) if read[c].str.contains(" ").any() else 0
        look = "note" if longest > 44 else "wrap" if longest > 24 else ""
        look = "code" if c == "command" else look
        columns.append(Column(heading(c), HINTS.get(c, ""), c in CHOSEN, look))
    cells = [zip(read[c], map(sort_value, table[c]), strict=True) for c in kept]
    return columns, list(zip(*cells, strict=True))


def markdown_table(table: pd.DataFrame) -> Markup:
    """The same as a table of GitHub's markdown."""
    from tabulate import tabulate

    columns, rows = grid(table)
    written = [code if column.look == "code" else markdown for column in columns]
    cells = [[write(t) for write, (t, _) in zip(written, row, strict=True)] for row in rows]
    names = [markdown(column.name) for column in columns]
    return Markup(tabulate(cells, names, "github", disable_numparse=True))
