"""The closing table: the leaderboard in brief, from the metrics, and where the report lies."""

import json
from collections.abc import Sequence
from textwrap import wrap
from typing import Annotated, Any, NamedTuple

import typer

from common import ProfileOption, Workspace, script

COLUMNS = ("model", "clean %", "robust %", "PGD %", "transfer %", "vs dense", "verdict")
BITS = "bits"  # only where weights were attacked
MEANING = "bits: how many stored bits have to be turned over until the network guesses."
TEXT = ("model", "verdict")  # columns to be read from the left


def show(
    profile: ProfileOption = None,
    markdown: Annotated[bool, typer.Option(help="Print a Markdown table instead.")] = False,
) -> None:
    """Print a row a model in params order; the last line is the path of the report."""
    workspace = Workspace.open(profile)
    if markdown:
        print(as_markdown(workspace))
        return
    table = _closing(workspace)
    _print_table(table.title, table.columns, table.rows)
    print(*table.notes, sep="\n", end="\n" if table.notes else "")
    print(workspace.place("reports", "report.html"))


class Closing(NamedTuple):
    """The table's parts; cells are text."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]]
    notes: list[str]


def as_markdown(workspace: Workspace) -> str:
    """The table with its title and its notes."""
    from tabulate import tabulate

    title, columns, rows, notes = _closing(workspace)
    table = tabulate(rows, columns, "github", disable_numparse=True)
    return "\n\n".join(part for part in (f"**{title}**", table, "\n".join(notes)) if part)


def _closing(workspace: Workspace) -> Closing:
    from advprune.report.text import budget

    params = workspace.params
    declared, missing = _declared(workspace)
    found = {name: _metrics(workspace, name) for name in declared}
    rows = [_row(name, one) for name, one in found.items()]
    columns, notes = COLUMNS, _not_run(missing)
    if any(one.get("flips_to_chance") is not None for one in found.values()):
        columns, notes = (*COLUMNS, BITS), [MEANING, *notes]
        rows = [[*row, _flips(one)] for row, one in zip(rows, found.values(), strict=True)]
    main = params.active().attacks[params.attack.main]
    n = next(iter(found.values()))["n"]
    title = (
        f"{params.profile}: robust accuracy, worst case over the suite "
        f"({main.norm}, eps {budget(main.eps)}), n = {n}"
    )
    return Closing(title, columns, rows, notes)


def _declared(workspace: Workspace) -> tuple[list[str], list[str]]:
    """The models that params.yaml declares: those with metrics, and those that were not run.

    Where there are no metrics at all every model is named as run, so that the first is missed.
    """
    params = workspace.params
    names = [f"{f}-{base}" for base in params.bases for f in params.models(base)]
    there = [name for name in names if workspace.place("metrics", f"{name}.json").is_file()]
    return there or names, [name for name in names if there and name not in there]


def _not_run(missing: list[str]) -> list[str]:
    """Which models there are no metrics of, in lines."""
    return wrap(f"Not run with these settings: {', '.join(missing)}.", 80) if missing else []


def _print_table(title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    look = box.SIMPLE_HEAD
    table = Table(title=title, title_justify="left", box=look, show_edge=False, padding=0)
    for column in columns:
        table.add_column(column, justify="left" if column in TEXT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = Console(width=1000).measure(table).maximum  # as wide as it must be: nothing is cut
    Console(width=width).print(table)


def _metrics(workspace: Workspace, name: str) -> dict[str, Any]:
    from advprune.core.errors import UserError

    path = workspace.place("metrics", f"{name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; run `dvc repro`") from error


def _row(name: str, found: dict[str, Any]) -> list[str]:
    from advprune.report.text import NOTHING, percent, with_interval

    robust = [found.get(f"robust_accuracy{end}") for end in ("", "_low", "_high")]
    is_dense = name.startswith("dense-")
    return [
        name,
        percent(found["clean_accuracy"]),
        with_interval(*robust),
        percent(found["remnant_accuracy"]),
        NOTHING if is_dense else percent(found["transfer_accuracy"]),
        NOTHING if is_dense else found["against_dense"],
        found.get("verdict", NOTHING),  # none in metrics of before there were verdicts
    ]


def _flips(found: dict[str, Any]) -> str:
    """Stored bits to chance; a dash where that was not measured or not reached."""
    from advprune.report.text import NOTHING

    flips = found.get("flips_to_chance")
    return NOTHING if flips is None else f"{flips:.0f}"


if __name__ == "__main__":
    script(show)
