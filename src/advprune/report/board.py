"""The leaderboard of the page: cells that know the number they are sorted by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from advprune.evaluate.compare import compare
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.report.costs import passes
from advprune.report.study import Model, Study
from advprune.report.text import NOTHING, percent, with_interval
from advprune.report.verdicts import RANK, level_text

FLIPS = "flips_to_chance"  # a metric that a run without weight faults does not have


@dataclass(frozen=True)
class Cell:
    """What is read, and what it is sorted by: a number, a text, or None, which comes last."""

    text: str
    value: float | str | None


@dataclass(frozen=True)
class Column:
    """A heading, what it means in a few words, and whether rows can be chosen by its texts."""

    name: str
    hint: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Board:
    """Columns, and a row of cells for each model in params order."""

    columns: list[Column]
    rows: list[list[Cell]]

    def frame(self) -> pd.DataFrame:
        """What is read, as a table."""
        names = [column.name for column in self.columns]
        return pd.DataFrame([[cell.text for cell in row] for row in self.rows], columns=names)


def board(study: Study) -> Board:
    """A row a model; columns that say nothing in any row are left out."""
    kept = [made for made in _columns(study) if _says_something(study, made)]
    rows = [[cell(model) for _, cell in kept] for model in study.models]
    return Board([column for column, _ in kept], rows)


Made = tuple[Column, Callable[[Model], Cell]]


def _columns(study: Study) -> list[Made]:
    main = study.main
    return [
        (Column("family", chosen=True), lambda m: Cell(m.family, m.family)),
        (Column("base", "how the dense network was trained", True), lambda m: Cell(m.base, m.base)),
        (
            Column("sparsity %", "zeros among the parameters of the saved file"),
            lambda m: Cell(percent(m.card["sparsity"]), float(m.card["sparsity"])),
        ),
        (Column("bits", "of a stored weight", True), lambda m: _number(m.card["bits"], "d")),
        (Column("clean %", "without an attack"), lambda m: _rate(clean_accuracy(m.attack(main)))),
        (
            Column("robust %", "worst case over the suite, with its 95 % interval"),
            lambda m: _rate(remnant_accuracy(study.robust(m))),
        ),
        (Column("against dense", "robust, on the same images"), lambda m: _against(study, m)),
        (Column("transfer %", "on images crafted on the dense network"), lambda m: _sent(main, m)),
        (
            Column("flips", "bits flipped until the network is at chance"),
            lambda m: _number(study.metrics(m).get(FLIPS), ",.0f"),
        ),
        (Column("ECE", "calibration, clean"), lambda m: _number(study.metrics(m)["ece"], ".3f")),
        (Column("MACs", "multiply-accumulates an image"), lambda m: _number(m.card["macs"], ",d")),
        (Column("passes", "of the attacks, per image"), lambda m: _passes(study, m)),
        (Column("verdict", "can it be believed", True), lambda m: _verdict(study, m)),
    ]


def _says_something(study: Study, made: Made) -> bool:
    """A single base is not named; numbers that no model has are no column."""
    column, cell = made
    if column.name == "base":
        return len(study.params.bases) > 1
    return any(cell(model).value is not None for model in study.models)


def _number(value: Any, form: str) -> Cell:
    return Cell(NOTHING, None) if value is None else Cell(format(value, form), float(value))


def _rate(found: Rate) -> Cell:
    return Cell(with_interval(found.value, *found.interval), found.value)


def _sent(main: str, model: Model) -> Cell:
    """A dense network receives nothing from itself; nor does a model that was never tried."""
    known = model.family != "dense" and (f"dense-{model.base}", main) in model.received
    return _rate(remnant_accuracy(model.transferred(main))) if known else Cell(NOTHING, None)


def _against(study: Study, model: Model) -> Cell:
    """The mark of the test; sorted by the difference where one is shown."""
    if model.family == "dense":
        return Cell(NOTHING, None)
    test = compare(study.robust(model), study.robust(study.dense(model.base)))
    return Cell(test.mark, None if test.void else test.difference if test.differs else 0.0)


def _passes(study: Study, model: Model) -> Cell:
    """Forward and backward passes of the whole suite."""
    found = study.metrics(model)
    total = float(found["gradients"] + found["forwards"])
    return Cell(passes(total), total)


def _verdict(study: Study, model: Model) -> Cell:
    """Sorted by severity: reliable, suspect, broken."""
    found = study.verdict(model)
    severity = max((RANK.index(check.outcome) for check in found.checks), default=0)
    return Cell(level_text(found), float(severity))
