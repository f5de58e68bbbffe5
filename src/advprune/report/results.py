"""The results of a run: one row per model, raw numbers. Everything that is shown starts here."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from advprune.evaluate import metrics
from advprune.evaluate.compare import AT_CHANCE, Comparison, compare
from advprune.evaluate.faults import flips_metric
from advprune.evaluate.measures import remnant_accuracy, robust_rates
from advprune.evaluate.transfer import transfer_success

if TYPE_CHECKING:
    from advprune.report.run import Model, Run

METRICS = (
    *("n", "clean_accuracy", "robust_accuracy", "robust_low", "robust_high"),
    *("transfer_accuracy", "sparsity", "bits", "flips_to_chance", "verdict"),
)  # the keys of metrics/<profile>/<model>.json


def results(run: "Run") -> pd.DataFrame:
    """One row per model in the order of the leaderboard; unknown values are None."""
    return pd.DataFrame([_row(run, model) for model in run.models])


def _row(run: "Run", model: "Model") -> dict[str, Any]:
    """The rates and the calibration under attack are the main attack's; robust rates and the
    comparison with the dense network are of the worst case over the suite."""
    dense, card = run.dense_of(model), model.card
    found = metrics(model.attack(run.main))
    for end in ("", "_low", "_high"):
        found[f"main_accuracy{end}"] = found.pop(f"remnant_accuracy{end}")
    robust, transferred = run.robust(model), model.transferred(run.main)
    against = compare(robust, run.robust(dense))
    verdict = run.verdict(model)
    row = {
        **{"model": model.name, "family": model.family, "parent": model.parent},
        **{"root": model.root, "do": model.do, "kind": model.kind, "group": model.group},
        **found,
        **robust_rates(robust),
        "robust_difference": None if model.is_dense else round(against.difference, 4),
        "p_against_dense": None if model.is_dense else round(against.p, 4),
        "against_dense": None if model.is_dense else outcome(against),
        **remnant_accuracy(transferred).columns("transfer_accuracy"),
        **transfer_success(transferred, dense.attack(run.main)).columns("transfer_success_rate"),
        **flips_metric(run.flips(model)),
        "verdict": verdict.level,
        "verdict_against": "; ".join(dict.fromkeys(check.name for check in verdict.against)),
    }
    names = [name for name in model.records.attack.unique() if not name.startswith(("curve_", "probe_"))]
    for name in names:
        row |= qualified(remnant_accuracy(model.attack(name)).columns("accuracy"), name)
    keys = ("prune_ratio", "sparsity", "bits", "parameters", "nonzero", "macs", "file_bytes")
    return row | {key: card[key] for key in (*keys, "stored_bits", "twin_agreement")}


def qualified(columns: dict[str, Any], qualifier: str) -> dict[str, Any]:
    """The same columns under the name `quantity:qualifier`."""
    return {f"{name}:{qualifier}": value for name, value in columns.items()}


def outcome(test: Comparison) -> str:
    """A paired comparison in a word: higher, lower, not significant or at chance."""
    if test.void:
        return AT_CHANCE
    if not test.differs:
        return "not significant"
    return "higher" if test.difference > 0 else "lower"
