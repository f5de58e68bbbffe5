"""The leaderboard in the terminal and as a Markdown table, from results.csv alone: no torch."""

from pathlib import Path

import pandas as pd

from advprune.core.errors import UserError
from advprune.report.formats import bounds, budget, heading, texts
from advprune.report.results import RESULTS, read_results, without_own

BRIEF = (
    *("model", "sparsity", "bits", "clean_accuracy", "robust_accuracy"),
    *("transfer_accuracy", "against_dense", "flips_to_chance", "verdict"),
)
LEFT = ("model", "against_dense", "verdict")  # columns of text


def leaderboard(profile: str, markdown: bool = False, folder: Path = Path("reports")) -> str:
    """The table of a finished run, its title first; UserError where there is none.

    markdown: as GitHub's markdown, else aligned as wide as it must be.
    """
    table = read(profile, folder)
    title = title_of(profile, table)
    if markdown:
        return f"**{title}**\n\n{markdown_of(table)}"
    return f"{title}\n{_aligned(table)}\n{folder / profile / 'report.html'}"


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
        f"{profile}: accuracy in percent, robust in the worst case over the suite "
        f"({first.norm}, eps {budget(first.eps)}), n = {first.n}"
    )


def markdown_of(table: pd.DataFrame) -> str:
    """The brief columns as a Markdown table."""
    from tabulate import tabulate

    shown = _brief(table)
    names = list(map(str, shown.columns))
    return tabulate(shown.values.tolist(), names, "github", disable_numparse=True)


def _brief(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that have any value, as text, with their headings."""
    known = [column for column in BRIEF if table[column].notna().any()]
    robust = [*known, *bounds("robust_accuracy")]
    return texts(without_own(table)[robust]).rename(columns=heading)


def _aligned(table: pd.DataFrame) -> str:
    from tabulate import tabulate

    shown = _brief(table)
    names, texts_of = list(map(str, shown.columns)), [heading(column) for column in LEFT]
    sides = ["left" if name in texts_of else "right" for name in names]
    cells = shown.values.tolist()
    return tabulate(cells, names, "simple", disable_numparse=True, colalign=sides)
