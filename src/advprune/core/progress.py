"""Progress in the terminal: what is being done, how far, how fast, and the time remaining."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class _Rate(ProgressColumn):
    """Units per second, since the start."""

    def render(self, task: Task) -> Text:
        speed = task.completed / task.elapsed if task.elapsed else None
        return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")


class _What(ProgressColumn):
    """What is being done, cut short where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


_quiet = False


def silence(quiet: bool = True) -> None:
    """Show nothing more in this process."""
    global _quiet
    _quiet = quiet


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while the block runs; yields a function `advance(units)`.

    Where standard error is no terminal, one line is printed at the end instead.
    """
    whole = Column(no_wrap=True)
    numbers = (MofNCompleteColumn, _Rate, TimeElapsedColumn, TimeRemainingColumn)
    columns = [_What(), BarColumn(bar_width=20, table_column=whole)]
    columns += [kind(table_column=whole) for kind in numbers]
    with Progress(*columns, console=Console(stderr=True, quiet=_quiet)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda units: bar.advance(task, units)
        bar.update(task, completed=total)  # work that was dropped as decided is done, too
