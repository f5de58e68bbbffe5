"""Text and tables in the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def show(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, title: str = ""
) -> None:
    """Print a table as wide as it needs to be, nothing cut; the first `left` columns are
    text, the others numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))  # names are text, never markup
    width = Console(width=1000).measure(table).maximum
    Console(width=width).print(table)


def show_frame(table: "pd.DataFrame") -> None:
    """Print a table of raw numbers as the report writes it."""
    from advprune.report.formats import heading, texts

    read = texts(table)
    show([heading(str(column)) for column in read], read.to_numpy().tolist())


def one_line(text: str) -> str:
    """Text from a file as one line that cannot steer the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
