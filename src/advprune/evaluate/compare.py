"""Two models, or two attacks, on the same images: paired, never by overlapping intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd

from advprune.evaluate.distances import DistanceComparison
from advprune.evaluate.measures import clean_accuracy
from advprune.evaluate.statistics import ALPHA, Rate, mcnemar, rate

AT_CHANCE = "at chance"


@dataclass(frozen=True)
class Comparison:
    """An accuracy against another one over the same images, with McNemar's exact p.

    void: the first model is at chance when clean. One that gives the same answer to every image
    cannot be fooled; what an attack leaves of it is no robustness, so nothing is concluded.
    """

    first: Rate
    second: Rate
    p: float
    void: bool = False
    tests: int = 1

    @property
    def difference(self) -> float:
        """First minus second, a fraction."""
        return (self.first.value or 0.0) - (self.second.value or 0.0)

    @property
    def differs(self) -> bool:
        """Whether a difference is shown (p < 0.05, and the comparison is not void)."""
        return self.p < ALPHA and not self.void

    @property
    def better(self) -> bool:
        """Whether the first is shown to be higher."""
        return self.differs and self.difference > 0

    @property
    def mark(self) -> str:
        """ "=", "▲ better", "▼ worse" or "at chance"."""
        return AT_CHANCE if self.void else mark(self.p, self.difference)


def mark(p: float, difference: float) -> str:
    """How a paired test against the dense network reads: "=" if not significant."""
    if p >= ALPHA:
        return "="
    return "▲ better" if difference > 0 else "▼ worse"


def right(records: pd.DataFrame, side: str = "adv") -> np.ndarray:
    """Which images are classified correctly: `side` is adv or clean."""
    return (records[f"{side}_pred"] == records.label).to_numpy()


def compare(first: pd.DataFrame, second: pd.DataFrame, side: str = "adv") -> Comparison:
    """Compare two tables of records; ValueError unless they hold the same images in order."""
    if not np.array_equal(first["index"], second["index"]):
        raise ValueError("compare: the records are not of the same images")
    hits, others = right(first, side), right(second, side)
    void = side == "adv" and at_chance(first)
    return Comparison(rate(hits), rate(others), mcnemar(hits, others), void)


def at_chance(records: pd.DataFrame) -> bool:
    """Whether the clean accuracy's interval reaches down to guessing among the labels."""
    low, _ = clean_accuracy(records).interval
    return low is None or low <= 1 / max(records.label.nunique(), 1)


Test = TypeVar("Test", Comparison, DistanceComparison)


def corrected(tests: Sequence[Test]) -> list[Test]:
    """The comparisons of one question: p by Holm, intervals and power for all of them together."""
    p_values, count = holm([test.p for test in tests]), len(tests)
    return [replace(test, p=p, tests=count) for test, p in zip(tests, p_values, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold for all tests of the list together.

    Holm, A simple sequentially rejective multiple test procedure (Scand. J. Statist., 1979).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, reached = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = reached
    return corrected
