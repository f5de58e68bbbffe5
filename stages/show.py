"""The closing table: the leaderboard in brief, from the metrics, and where the report lies."""

import json
from typing import Annotated, Any

import typer

from common import ProfileOption, Workspace, script

COLUMNS = ("model", "pruned %", "clean %", "remnant %", "transfer %", "vs dense")


def show(
    profile: ProfileOption = None,
    markdown: Annotated[bool, typer.Option(help="Print a Markdown table instead.")] = False,
) -> None:
    """Print a row a model in params order; the last line is the path of the report."""
    from advprune.report.text import budget

    workspace = Workspace.open(profile)
    params = workspace.params
    rows = [
        _row(f"{family}-{base}", _metrics(workspace, f"{family}-{base}"))
        for base in params.bases
        for family in ("dense", "int8", *params.prune)
    ]
    main = params.active().attacks[params.attack.main]
    n = _metrics(workspace, f"dense-{next(iter(params.bases))}")["n"]
    attack = f"{main.norm}, eps {budget(main.eps)}, {main.steps} steps"
    title = f"{params.profile}: remnant accuracy under PGD ({attack}), n = {n}"
    if markdown:
        from tabulate import tabulate

        table = tabulate(rows, COLUMNS, "github", disable_numparse=True)
        print(f"**{title}**\n\n{table}")
        return
    _print_table(title, rows)
    print(workspace.place("reports", "report.html"))


def _print_table(title: str, rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _metrics(workspace: Workspace, name: str) -> dict[str, Any]:
    from advprune.errors import UserError

    path = workspace.place("metrics", f"{name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; run `dvc repro`") from error


def _row(name: str, found: dict[str, Any]) -> list[str]:
    from advprune.report.text import NOTHING, percent, with_interval

    low, high = found["remnant_accuracy_low"], found["remnant_accuracy_high"]
    is_dense = name.startswith("dense-")
    return [
        name,
        percent(found["prune_ratio"], 2),
        percent(found["clean_accuracy"], 2),
        with_interval(found["remnant_accuracy"], low, high, digits=2),
        NOTHING if is_dense else percent(found["transfer_accuracy"], 2),
        NOTHING if is_dense else found["against_dense"],
    ]


if __name__ == "__main__":
    script(show)
