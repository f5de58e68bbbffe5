"""The closing table: the leaderboard in brief, from the metrics, and where the report lies."""

import json
from typing import Any

from common import ProfileOption, Workspace, script

COLUMNS = ("model", "pruned %", "clean %", "remnant %", "transfer %", "vs dense")


def show(profile: ProfileOption = None) -> None:
    """Print a row a model in params order; the last line is the path of the report."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    workspace = Workspace.open(profile)
    params = workspace.params
    attack = params.attack.main
    title = f"{params.profile}: remnant accuracy under {attack}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for base in params.bases:
        dense = _metrics(workspace, f"dense-{base}")
        for family in ("dense", "int8", *params.prune):
            table.add_row(*_row(f"{family}-{base}", _metrics(workspace, f"{family}-{base}"), dense))
    Console().print(table)
    print(workspace.place("reports", "report.html"))


def _metrics(workspace: Workspace, name: str) -> dict[str, Any]:
    from advprune.errors import UserError

    path = workspace.place("metrics", f"{name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; run `dvc repro`") from error


def _row(name: str, found: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    from advprune.report.text import NOTHING, mark, percent, with_interval

    low, high = found["remnant_accuracy_low"], found["remnant_accuracy_high"]
    difference = found["remnant_accuracy"] - dense["remnant_accuracy"]
    is_dense = name.startswith("dense-")
    return [
        name,
        percent(found["prune_ratio"], 2),
        percent(found["clean_accuracy"], 2),
        with_interval(found["remnant_accuracy"], low, high, digits=2),
        NOTHING if is_dense else percent(found["transfer_accuracy"], 2),
        NOTHING if is_dense else mark(found["p_against_dense"], difference),
    ]


if __name__ == "__main__":
    script(show)
