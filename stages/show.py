"""The closing table: the leaderboard in brief, from the metrics, and where the report lies."""

import json
from typing import Annotated, Any

import typer

from common import ProfileOption, Workspace, script

COLUMNS = ("model", "pruned %", "clean %", "robust %", "transfer %", "vs dense", "verdict")
TEXT = ("model", "verdict")  # columns to be read from the left


def show(
    profile: ProfileOption = None,
    markdown: Annotated[bool, typer.Option(help="Print a Markdown table instead.")] = False,
) -> None:
    """Print a row a model in params order; the last line is the path of the report."""
    from advprune.report.text import budget

    workspace = Workspace.open(profile)
    params = workspace.params
    found = {name: _metrics(workspace, name) for name in _declared(workspace)}
    rows = [_row(name, one) for name, one in found.items()]
    main = params.active().attacks[params.attack.main]
    n = next(iter(found.values()))["n"]
    title = (
        f"{params.profile}: robust accuracy, worst case over the suite "
        f"({main.norm}, eps {budget(main.eps)}), n = {n}"
    )
    if markdown:
        from tabulate import tabulate

        table = tabulate(rows, COLUMNS, "github", disable_numparse=True)
        print(f"**{title}**\n\n{table}")
        return
    _print_table(title, rows)
    print(workspace.place("reports", "report.html"))


def _declared(workspace: Workspace) -> list[str]:
    """The models that params.yaml declares, without bases of which there is nothing at all.

    Where there is nothing of any base all are named, so that the first is said to be missing.
    """
    params = workspace.params
    bases = {
        base: [f"{family}-{base}" for family in ("dense", "int8", *params.prune)]
        for base in params.bases
    }
    there = {
        base: names
        for base, names in bases.items()
        if any(workspace.place("metrics", f"{name}.json").is_file() for name in names)
    }
    return [name for names in (there or bases).values() for name in names]


def _print_table(title: str, rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    look = box.SIMPLE_HEAD
    table = Table(title=title, title_justify="left", box=look, show_edge=False, padding=0)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in TEXT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = Console(width=1000).measure(table).maximum  # as wide as it must be: nothing is cut
    Console(width=width).print(table)


def _metrics(workspace: Workspace, name: str) -> dict[str, Any]:
    from advprune.errors import UserError

    path = workspace.place("metrics", f"{name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; run `dvc repro`") from error


def _row(name: str, found: dict[str, Any]) -> list[str]:
    from advprune.report.text import NOTHING, percent, with_interval

    interval = found["robust_accuracy_low"], found["robust_accuracy_high"]
    is_dense = name.startswith("dense-")
    return [
        name,
        percent(found["prune_ratio"], 2),
        percent(found["clean_accuracy"]),
        with_interval(found["robust_accuracy"], *interval),
        NOTHING if is_dense else percent(found["transfer_accuracy"]),
        NOTHING if is_dense else found["against_dense"],
        found["verdict"],
    ]


if __name__ == "__main__":
    script(show)
