"""What results.csv says twice: columns that follow from outcomes, distances and counts.

A file that was edited, or put together from two, is found out by them.
"""

import re
from collections.abc import Iterator, Mapping
from math import isclose, isfinite
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advprune.evaluate.compare import compare_hits, corrected
from advprune.evaluate.robust import area
from advprune.evaluate.statistics import Rate, median_distance
from advprune.report.formats import with_interval

DISTANCE = "<f2"  # type of a stored distance: four hexadecimal digits
SLACK = 1e-3  # relative rounding error of a stored distance
PLACES = 1e-6  # to which the others are rounded
SHARES = 1e-4  # to which sparsity is
OF_ALL = ("clean_accuracy", "main_accuracy", "prediction_change_rate", "transfer_accuracy")
CONTROL = re.compile(r" \(control: (.+)\)$")


class Implied(NamedTuple):
    """What a column of a model has to hold: nothing where it is infinite."""

    model: str
    column: str
    value: float
    slack: float = PLACES
    relative: float = 0.0

    def agrees(self, found: Any) -> bool:
        """Whether the column does hold it."""
        if not isfinite(self.value):
            return bool(pd.isna(found))
        return isclose(found, self.value, rel_tol=self.relative, abs_tol=self.slack)


def implied(table: pd.DataFrame) -> Iterator[Implied]:
    """Everything that outcomes, distances and counts of the models that were run imply."""
    rates = [*OF_ALL, *table.columns[table.columns.str.startswith("accuracy:")]]
    rows = {row["model"]: row for row in table.to_dict("records")}
    for model, row in rows.items():
        n, right, far = int(row["n"]), row["clean_accuracy"] * row["n"], distances(row)
        counts = {"robust_accuracy": Rate(row["robust_images"].count("1"), n)}
        counts |= {name: Rate(round(row[name] * n), n) for name in rates if _is_rate(row.get(name))}
        if _is_rate(share := row.get("attack_success_rate")):
            counts["attack_success_rate"] = Rate(round(share * right), round(right))
        for name, rate in counts.items():
            columns = with_interval(name, rate.value, *rate.interval)
            yield from (Implied(model, column, value) for column, value in columns.items())
        ends = with_interval("median_distance", *median_distance(far))
        ends["area_accuracy"] = area(far, 2 * row["eps"])
        yield from (Implied(model, name, value, relative=SLACK) for name, value in ends.items())
        if _is_count(row.get("parameters")) and _is_count(row.get("nonzero")):
            yield Implied(model, "sparsity", 1 - row["nonzero"] / row["parameters"], SHARES)
    yield from _against_dense(rows)


def _against_dense(rows: Mapping[str, Mapping[Any, Any]]) -> Iterator[Implied]:
    """Robust accuracy of the models of each dense network against it, or against a control."""
    tests: dict[str, dict[str, Any]] = {}
    for model, row in rows.items():
        named = CONTROL.search(str(row.get("against_dense")))
        other = rows.get(named[1] if named else str(row.get("root")))
        if other is not None and other is not row:
            pair = (np.array(list(one["robust_images"])) == "1" for one in (row, other))
            tests.setdefault(row["root"], {})[model] = compare_hits(*pair)
    for group in tests.values():
        for model, test in zip(group, corrected(list(group.values())), strict=True):
            columns = with_interval("robust_difference", test.difference, *test.interval)
            columns |= {"robust_detectable": test.detectable, "p_against_dense": test.p}
            yield from (Implied(model, column, value) for column, value in columns.items())


def distances(row: Mapping[Any, Any]) -> np.ndarray:
    """The distances `[n]` of a row, as they are stored."""
    return np.frombuffer(bytes.fromhex(row["image_distances"]), DISTANCE).astype(float)


def _is_rate(value: Any) -> bool:
    return value is not None and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return value is not None and 0 < value < 1e15
