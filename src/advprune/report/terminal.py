"""The leaderboard in the terminal and as a Markdown table, from results.csv alone: no torch."""

from pathlib import Path
from typing import Any

import pandas as pd

from advprune.core.errors import UserError
from advprune.report.formats import bounds, budget, budgets_in, heading, texts
from advprune.report.results import RESULTS, read_results, without_own_transfer
from advprune.report.run import NOT_RUN

BRIEF = (
    *("model", "sparsity", "bits", "clean_accuracy", "robust_accuracy", "median_distance"),
    *("distance_against_dense", "transfer_accuracy", "flips_to_chance", "verdict"),
)
LEFT = ("model", "distance_against_dense", "verdict")  # columns of text


def leaderboard(profile: str, markdown: bool = False, folder: Path = Path("reports")) -> str:
    """The table of a finished run, its title first, for the terminal or GitHub."""
    table = read(profile, folder)
    with budgets_in(str(table.norm.iloc[0])):
        title = title_of(profile, table)
        if markdown:
            return f"**{title}**\n\n{table_of(table)}"
        return f"{title}\n{table_of(table, 'simple')}\n{folder / profile / 'report.html'}"


def read(profile: str, folder: Path = Path("reports")) -> pd.DataFrame:
    """The results of a profile; UserError where they are missing or damaged."""
    path = folder / profile / RESULTS
    try:
        return read_results(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"there is no {path}; run `dvc repro`") from error


def title_of(profile: str, table: pd.DataFrame) -> str:
    """Profile, norm, budget and number of images in one line."""
    first = table.iloc[0]
    return (
        f"{profile}: accuracy in percent, robust: no attack broke the image ({first.norm}, eps "
        f"{budget(first.eps)}), n = {first.n:.0f}"
    )


def table_of(table: pd.DataFrame, form: str = "github") -> str:
    """The columns of `BRIEF` that hold a value, in a format of tabulate; then the names of the
    models that were not run."""
    from tabulate import tabulate

    absent = table[table.verdict == NOT_RUN].model
    table = table[table.verdict != NOT_RUN]
    known = [column for column in BRIEF if table[column].notna().any()]
    shown = texts(without_own_transfer(table)[[*known, *bounds("robust_accuracy")]])
    sides = ["left" if column in LEFT else "right" for column in shown]
    how: dict[str, Any] = {} if form == "github" else {"colalign": sides}
    names = [heading(str(column)) for column in shown]
    text = tabulate(shown.values.tolist(), names, form, disable_numparse=True, **how)
    return f"{text}\n\nNot run: {', '.join(absent)}." if len(absent) else text
