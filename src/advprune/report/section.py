"""Sections of the report: one file each in `sections/`, whose files are all imported.

A section is a function of a run that yields parts; its id is its file's name:

    from advprune.report.section import Chart, Part, Parts, Run, section

    @section("Layers", order=60)
    def layers(run: Run) -> Parts: ...
"""

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

import pandas as pd

from advprune.report.chart import Chart
from advprune.report.run import Model, Run

LONG = 16  # rows from which a table is folded


@dataclass(frozen=True, eq=False)
class Part:
    """A heading, one or two sentences, a table (raw numbers, rates as fractions, text only for
    names) and a chart. folded: table and chart are shown once they are asked for."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    chart: Chart | None = None
    folded: bool = False

    @property
    def is_folded(self) -> bool:
        """Whether table and chart are shown once they are asked for: long tables always are."""
        return self.folded or (self.table is not None and len(self.table) > LONG)

    @property
    def inside(self) -> str:
        """What a folded part holds."""
        return "The figure" if self.table is None else f"All {len(self.table)} rows"


Parts = Iterator[Part]
Build = Callable[[Run], Parts]


@dataclass(frozen=True)
class Section:
    """A registered section. order: sections are shown from small to large."""

    id: str
    title: str
    order: int
    build: Build

    def parts(self, run: Run) -> list[Part]:
        """Its parts, without empty tables and charts, and without parts that hold nothing else."""
        found = []
        for part in self.build(run):
            table = part.table if part.table is not None and len(part.table) else None
            chart = part.chart if part.chart is not None and len(part.chart.data) else None
            is_text = part.table is None and part.chart is None
            if is_text or table is not None or chart is not None:
                found.append(replace(part, table=table, chart=chart))
        return found


__all__ = ["Chart", "Model", "Part", "Parts", "Run", "Section", "section", "sections"]
_REGISTRY: dict[str, Section] = {}


def section(title: str, order: int) -> Callable[[Build], Build]:
    """Register a function as the section of its file; a run without its records gives no parts."""

    def register(build: Build) -> Build:
        name = build.__module__.rpartition(".")[2]
        _REGISTRY[name] = Section(name, title, order, build)
        return build

    return register


@cache
def sections() -> list[Section]:
    """All sections in the order in which they are shown."""
    from advprune.report import sections as folder

    for module in pkgutil.iter_modules(folder.__path__):
        import_module(f"{folder.__name__}.{module.name}")
    return sorted(_REGISTRY.values(), key=lambda one: (one.order, one.id))
