"""Common corruptions: accuracy of models on the same corrupted images.

An image counts with the share of its corrupted versions that a model has right, so that intervals
and tests are over images, and paired. Robust accuracy does not contain them.
"""

import pandas as pd

from advprune.evaluate.corruptions import SEVERITIES, Shares, compare_shares, shares
from advprune.evaluate.means import Mean
from advprune.evaluate.measures import clean_accuracy
from advprune.evaluate.statistics import Rate
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.tables import Row, columns, explained, jointly, rated


@section("Common corruptions", order=47)
def corruptions(run: Run) -> Parts:
    """Accuracy by severity with the test against the dense network, and by corruption."""
    if not (records := records_of(run)):
        return
    first = next(iter(records.values()))
    kinds, n = list(first.corruption.unique()), first["index"].nunique()
    marks, axes = over_severity(records), ("severity", "accuracy", "model")
    yield Part(
        "Accuracy on corrupted images",
        f"{len(kinds)} corruptions at severities {SEVERITIES[0]} to {SEVERITIES[-1]}, n = {n} test "
        "images; the mean against the dense network's by a paired t test over images. "
        f"{explained('all models of a dense network')} Not part of the robust accuracy.",
        by_severity(run, records),
        Chart("corruptions", "line", marks, *axes, interval=True, ordered=True),
    )
    yield Part(
        "Accuracy by corruption",
        f"Means over severities. {explained('all models and corruptions of a dense network')}",
        by_kind(run, records, kinds),
        folded=True,
    )


def records_of(run: Run) -> dict[str, pd.DataFrame]:
    """The records of the studied models, in the order of the leaderboard."""
    studied = {study.of: run.studies[name] for name, study in run.studies_of("corruptions").items()}
    return {model.name: studied[model.name] for model in run.models if model.name in studied}


def against_dense(run: Run, tables: dict[tuple[str, str], Shares]) -> dict[tuple[str, str], Row]:
    """Shares by model and corruption (or their `mean`) against those of the dense network, as
    columns; all models of a dense network are corrected together, and it has none."""
    found: dict[tuple[str, str], Row] = {key: {} for key in tables}
    margin = run.params.statistics.margin
    for root in run.roots:
        names = [model.name for model in run.descendants(root)]
        pairs = {(n, what): (root.name, what) for n, what in tables if n in names}
        tests = {own: (tables[own], tables[of]) for own, of in pairs.items() if of in tables}
        joint = jointly({own: compare_shares(*pair, margin) for own, pair in tests.items()})
        found |= {own: columns(test) for own, test in joint.items()}
    return found


def by_severity(run: Run, records: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per model: clean, at each severity, the mean, and its test."""
    means = {(name, "mean"): shares(table) for name, table in records.items()}
    tests, rows = against_dense(run, means), []
    for (name, mean), own in means.items():
        row: Row = {"model": name}
        for severity, found in severities(records[name]).items():
            column = f"accuracy:severity {severity}" if severity else "clean_accuracy"
            row |= rated(column, found)
        rows.append(row | rated("mean_accuracy", own.mean) | tests[name, mean])
    return pd.DataFrame(rows)


def over_severity(records: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per model and severity; severity 0 is the clean image."""
    return pd.DataFrame(
        {"model": name, "severity": severity} | rated("accuracy", found)
        for name, table in records.items()
        for severity, found in severities(table).items()
    )


def severities(table: pd.DataFrame) -> dict[int, Rate | Mean]:
    """Accuracy at each severity, of clean images at 0."""
    found: dict[int, Rate | Mean] = {0: clean_accuracy(table.drop_duplicates("index"))}
    return found | {int(str(k)): shares(own).mean for k, own in table.groupby("severity")}


def by_kind(run: Run, records: dict[str, pd.DataFrame], kinds: list[str]) -> pd.DataFrame:
    """One row per model and corruption."""
    tables = {
        (name, kind): shares(table[table.corruption == kind])
        for name, table in records.items()
        for kind in kinds
    }
    tests = against_dense(run, tables)
    return pd.DataFrame(
        {"model": name, "corruption": kind} | rated("accuracy", own.mean) | tests[name, kind]
        for (name, kind), own in tables.items()
    )
