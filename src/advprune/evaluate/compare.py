"""Two models, or two attacks, on the same images: paired, never by overlapping intervals.

Comparisons that answer one question are corrected together (`corrected`). A model whose clean
accuracy is significantly below the other's is never called higher, as that may be what it always
answers: it is compared with a control of equal clean accuracy instead (`with_control`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd

from advprune.evaluate.measures import clean_accuracy, right
from advprune.evaluate.statistics import (
    ALPHA,
    NORMAL,
    POWER,
    Rate,
    consistent,
    difference_interval,
    equivalence,
    mcnemar,
    rate,
    smallest_difference,
)

AT_CHANCE = "at chance"
LOWER_CLEAN = "lower clean accuracy, no control"
UPPER_BOUND = "upper bound"
NOT_SIGNIFICANT = "not significant"
MARGIN = 0.02  # accuracies that differ by less are equivalent, unless the settings say otherwise


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """What every comparison has, whatever is compared.

    p: that there is no difference, which is the first minus the second; direction: positive where
    the first is higher. ends_at: at a level, the differences that the test does not reject;
    detectable_at: the smallest one that it shows in 80 % of all cases, by default by the width of
    that interval. p_equivalent: that the difference is `margin` or more. tests: how many
    comparisons these hold for together. void: why the first is not called higher; at chance,
    nothing is concluded. control: the model that took the second's place. bounds: whether the first
    and the second are upper bounds only.
    """

    p: float
    direction: float
    difference: float
    ends_at: Callable[[float], tuple[float, float]]
    detectable_at: Callable[[float], float] | None = None
    p_equivalent: float = 1.0
    tests: int = 1
    void: str = ""
    control: str = ""
    bounds: tuple[bool, bool] = (False, False)
    margin: float = MARGIN

    @property
    def interval(self) -> tuple[float, float]:
        """Of the difference, for all tests together, and never against p."""
        return consistent(self.ends_at(ALPHA / self.tests), self.direction, self.p)

    @property
    def detectable(self) -> float:
        """The smallest difference that is shown in 80 % of all cases, for all tests together."""
        alpha = ALPHA / self.tests
        return (self.detectable_at or partial(by_width, self.ends_at))(alpha)

    @property
    def rests_on_bound(self) -> bool:
        """Whether the one that comes out higher is an upper bound only, and may be lower."""
        first, second = self.bounds
        return first if self.direction > 0 else second

    @property
    def differs(self) -> bool:
        """Whether a difference is shown and means something."""
        excused = self.void == AT_CHANCE or (self.void and self.direction > 0)
        return self.p < ALPHA and not excused and not self.rests_on_bound

    @property
    def better(self) -> bool:
        """Whether the first is shown to be higher."""
        return self.differs and self.direction > 0

    @property
    def outcome(self) -> str:
        """higher, lower, equivalent within a margin, not significant, or why nothing is said."""
        if self.void == AT_CHANCE:
            return AT_CHANCE
        word = NOT_SIGNIFICANT
        if self.p < ALPHA:
            word = "lower" if self.direction < 0 else self.void or "higher"
            word = UPPER_BOUND if self.rests_on_bound else word
        elif self.p_equivalent < ALPHA and not any(self.bounds):
            word = f"equivalent within ±{100 * self.margin:g} points"
        return f"{word} (control: {self.control})" if self.control else word


def by_width(ends_at: Callable[[float], tuple[float, float]], alpha: float) -> float:
    """What is detectable at a level, by the width of its interval, as of a normal distribution."""
    low, high = ends_at(alpha)
    return (high - low) / 2 * (1 + NORMAL.inv_cdf(POWER) / NORMAL.inv_cdf(1 - alpha / 2))


@dataclass(frozen=True, eq=False)
class Comparison(Compared):
    """An accuracy against another one over the same images: p is McNemar's, exact, the interval
    Tango's. gained, lost: on how many images the first or the second alone is right."""

    first: Rate
    second: Rate
    gained: int
    lost: int


def compare(
    first: pd.DataFrame, second: pd.DataFrame, side: str = "adv", margin: float = MARGIN
) -> Comparison:
    """Compare two tables of records; ValueError unless they hold the same images in order."""
    for column, what in (("index", "images"), ("label", "labels")):
        if not np.array_equal(first[column], second[column]):
            raise ValueError(f"compare: the records are not of the same {what}")
    found = compare_hits(right(first, side), right(second, side), margin)
    if side == "clean":
        return found
    clean = compare_hits(right(first, "clean"), right(second, "clean"))
    return replace(found, void=void_by(clean, at_chance(first)))


def void_by(clean: Compared, guesses: bool = False) -> str:
    """Why a first model is not called higher, by its clean accuracy compared with the second's:
    what an attack spares of it may only be what it always answers."""
    lower = clean.p < ALPHA and clean.direction < 0
    return AT_CHANCE if guesses else LOWER_CLEAN if lower else ""


def compare_hits(first: np.ndarray, second: np.ndarray, margin: float = MARGIN) -> Comparison:
    """Compare two boolean arrays over the same images; ValueError where lengths differ."""
    if len(first) != len(second):
        raise ValueError(f"compare: {len(first)} and {len(second)} images are not the same images")
    gained, lost, n = int(np.sum(first & ~second)), int(np.sum(second & ~first)), len(first)
    own, other = rate(first), rate(second)
    return Comparison(
        *(own, other, gained, lost),
        p=mcnemar(gained, lost),
        direction=gained - lost,
        difference=(own.value or 0.0) - (other.value or 0.0),
        ends_at=partial(difference_interval, gained, lost, n),
        detectable_at=partial(smallest_difference, gained + lost, n),
        p_equivalent=equivalence(gained, lost, n, margin) if n else 1.0,
        margin=margin,
    )


def at_chance(records: pd.DataFrame) -> bool:
    """Whether the clean accuracy's interval reaches down to that of the best constant answer: the
    share of the most frequent label."""
    low, _ = clean_accuracy(records).interval
    return low is None or low <= records.label.value_counts(normalize=True).max()


Some = TypeVar("Some", bound=Compared)


def with_control(
    test: Some,
    first: pd.DataFrame,
    controls: Mapping[str, pd.DataFrame],
    again: Callable[[pd.DataFrame], Some],
) -> Some:
    """A comparison of `first`; where it is void for its lower clean accuracy, `again` with the
    control of nearest clean accuracy among those whose clean accuracy does not differ."""
    if test.void != LOWER_CLEAN or test.p >= ALPHA or test.direction <= 0:
        return test
    clean = {name: compare(first, other, "clean") for name, other in controls.items()}
    alike = {name: abs(one.difference) for name, one in clean.items() if one.p >= ALPHA}
    if not alike:
        return test
    name = min(alike, key=alike.__getitem__)
    return replace(again(controls[name]), control=name)


def corrected(tests: Sequence[Some]) -> list[Some]:
    """The comparisons of one question: p-values by Holm, the rest for that number of tests."""
    differ, same = holm([test.p for test in tests]), holm([test.p_equivalent for test in tests])
    return [
        replace(test, p=p, p_equivalent=p_equivalent, tests=len(tests))
        for test, p, p_equivalent in zip(tests, differ, same, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all tests of the list together, by Holm's step-down correction."""
    p, order = np.asarray(p_values, dtype=float), np.argsort(p_values)
    steps = np.minimum(1.0, np.arange(len(p), 0, -1) * p[order])
    return [float(one) for one in np.maximum.accumulate(steps)[np.argsort(order)]]
