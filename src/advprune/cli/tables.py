"""Text and tables in the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from advprune.core.errors import one_line

if TYPE_CHECKING:
    import pandas as pd


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print a table, nothing cut; the first `left` columns are text, the others numbers."""
    from tabulate import tabulate

    sides = ["left" if place < left else "right" for place in range(len(columns))]
    cells = [[one_line(cell) for cell in row] for row in rows]
    print(tabulate(cells, columns, "simple", colalign=sides, disable_numparse=True))


def show_frame(table: "pd.DataFrame") -> None:
    """Print a table of raw numbers as the report writes it."""
    from advprune.report.formats import heading, texts

    read = texts(table)
    show([heading(str(column)) for column in read], read.to_numpy().tolist())
