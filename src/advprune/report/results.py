"""The results of a run: one row per model, raw numbers. Everything that is shown starts here."""

import hashlib
import io
from functools import cache
from typing import Any

import pandas as pd

from advprune.core.errors import UserError
from advprune.evaluate import metrics
from advprune.evaluate.compare import right
from advprune.evaluate.faults import flips_metric
from advprune.evaluate.measures import remnant_accuracy, robust_rates
from advprune.evaluate.robust import area
from advprune.evaluate.statistics import Rate, median_distance
from advprune.evaluate.transfer import transfer_success
from advprune.report.compared import Against, against_dense, finite
from advprune.report.formats import bounds, number
from advprune.report.run import Model, Run

RESULTS = "results.csv"
OUTCOMES = "claims.csv"
METRICS = {  # the keys of metrics/<profile>/<model>.json, and their columns here
    **{name: name for name in ("n", "clean_accuracy", "robust_accuracy")},
    **{"robust_low": "robust_accuracy_low", "robust_high": "robust_accuracy_high"},
    **{name: name for name in ("median_distance", "sparsity", "bits", "flips_to_chance")},
    "verdict": "verdict",
}
HEX = frozenset("0123456789abcdef")
FINGERPRINT = 16  # hex digits of the sha256 of the test images and labels, in order
NUMBERS = ("n", "clean_accuracy", "robust_accuracy")
REQUIRED = ("model", "images", "robust_images", "image_distances")
DISTANCE = "<f2"  # how the distance of each image is kept: four hexadecimal digits
AGAINST = (  # empty for a dense network
    *("robust_difference", "robust_difference_low", "robust_difference_high"),
    *("robust_detectable", "p_against_dense", "against_dense"),
    *("distance_difference", "distance_difference_low", "distance_difference_high"),
    *("p_distance", "distance_against_dense"),
)


@cache
def results(run: Run) -> pd.DataFrame:
    """One row per model in the order of the leaderboard; unknown values are None."""
    return pd.DataFrame([_row(run, model) for model in run.models])


def _row(run: Run, model: Model) -> dict[str, Any]:
    """The rates and the calibration under attack are the main attack's; robust rates and the
    comparison with the dense network are of the worst case over the suite."""
    dense, card, setting = run.dense_of(model), model.card, model.card["setting"]
    found = metrics(model.attack(run.main))
    for end in ("", "_low", "_high"):
        found[f"main_accuracy{end}"] = found.pop(f"remnant_accuracy{end}")
    robust, transferred = run.robust(model), model.transferred(run.main)
    distances = run.distances(model)
    median = dict(zip(_ends("median_distance"), median_distance(distances), strict=True))
    verdict = run.verdict(model)
    row = {
        **{"model": model.name, "family": model.family, "parent": model.parent},
        **{"root": model.root, "recipe": model.recipe, "do": model.do, "kind": model.kind},
        **{"group": model.group, "setting": None if setting is None else number(setting)},
        **{"attack": run.main, "norm": run.main_attack.norm, "eps": run.main_attack.eps},
        **found,
        **robust_rates(robust),
        **{name: _rounded(value) for name, value in median.items()},
        "area_accuracy": round(area(distances, 2 * run.main_attack.eps), 6),
        **dict.fromkeys(AGAINST),
        **({} if model.is_dense else _compared(against_dense(run)[model])),
        **remnant_accuracy(transferred).columns("transfer_accuracy"),
        **transfer_success(transferred, dense.attack(run.main)).columns("transfer_success_rate"),
        **flips_metric(run.flips(model)),
        "verdict": verdict.level,
        "verdict_against": "; ".join(dict.fromkeys(check.name for check in verdict.against)),
    }
    for name in run.attack_names(model):
        row |= qualified(remnant_accuracy(model.attack(name)).columns("accuracy"), name)
    keys = ("prune_ratio", "sparsity", "bits", "parameters", "nonzero", "macs", "file_bytes")
    row |= {key: card[key] for key in (*keys, "stored_bits", "twin_agreement")}
    # Image by image, so that two revisions can be compared on the same images (`report.gate`).
    hits = "".join("01"[hit] for hit in right(robust).astype(int))
    labels = run.models[0].attack(run.main).label.to_numpy(dtype="<i8")
    images = hashlib.sha256(run.clean_images.tobytes() + labels.tobytes()).hexdigest()
    own = {"robust_images": hits, "image_distances": distances.astype(DISTANCE).tobytes().hex()}
    return row | {"images": images[:FINGERPRINT]} | own


def _compared(tests: Against) -> dict[str, Any]:
    accuracy, distance = tests.robust, tests.distance
    robust = zip(_ends("robust_difference"), (accuracy.difference, *accuracy.interval), strict=True)
    far = zip(_ends("distance_difference"), (distance.difference, *distance.interval), strict=True)
    return {
        **{name: _rounded(value) for name, value in (*robust, *far)},
        "robust_detectable": _rounded(accuracy.detectable),
        **{"p_against_dense": round(accuracy.p, 6), "against_dense": accuracy.outcome},
        **{"p_distance": round(distance.p, 6), "distance_against_dense": distance.outcome},
    }


def _rounded(value: float) -> float | None:
    """To 6 places; None where it is infinite."""
    known = finite(value)
    return None if known is None else round(known, 6)


def _ends(column: str) -> tuple[str, ...]:
    return column, *bounds(column)


def without_own(table: pd.DataFrame) -> pd.DataFrame:
    """The results with no transfer for dense networks: there it is their own images."""
    own, columns = table.model == table.root, table.columns.str.startswith("transfer_")
    return table.assign(**{name: table[name].mask(own) for name in table.columns[columns]})


def metrics_of(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The DVC metrics of each model, by its name: the columns of `METRICS`, to 4 places."""
    chosen = table[["model", *METRICS.values()]].round(4).astype(object)
    chosen = chosen.where(chosen.notna(), None)
    return {
        name: dict(zip(METRICS, values, strict=True))
        for name, *values in chosen.itertuples(index=False, name=None)
    }


def read_results(text: str, where: str) -> pd.DataFrame:
    """The results from the text of a results.csv; UserError where it is damaged."""
    try:
        texts = dict.fromkeys(REQUIRED, str)
        table = pd.read_csv(io.StringIO(text), dtype=texts, keep_default_na=False, na_values=[""])
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{where} is damaged: {error}") from error
    if missing := [c for c in (*REQUIRED, *METRICS.values()) if c not in table]:
        raise UserError(f"{where} is damaged: it has no column {missing[0]}")
    if table.model.isna().any() or table.model.duplicated().any() or not len(table):
        raise UserError(f"{where} is damaged: models are missing or named twice")
    for column in NUMBERS:
        odd = pd.to_numeric(table[column], errors="coerce").isna()
        if odd.any():
            raise UserError(
                f"{where} is damaged: {column} of {table.model[odd].iloc[0]} is no number"
            )
        table[column] = pd.to_numeric(table[column])
    for row in table.to_dict("records"):
        model, hits, n = row["model"], str(row["robust_images"]), row["n"]
        if not set(hits) <= {"0", "1"} or len(hits) != n or not n or pd.isna(row["images"]):
            raise UserError(f"{where} is damaged: outcomes of {model} are not 0 or 1 per image")
        if len(digits := str(row["image_distances"])) != 4 * n or not set(digits) <= HEX:
            raise UserError(f"{where} is damaged: {model} lacks a distance for each image")
        if not 0 <= row["clean_accuracy"] <= 1:
            raise UserError(f"{where} is damaged: clean_accuracy of {model} is no rate")
        if not abs(hits.count("1") / n - row["robust_accuracy"]) <= 1e-6:
            raise UserError(f"{where} is damaged: {model} has another rate than its outcomes")
    return table


def qualified(columns: dict[str, Any], qualifier: str) -> dict[str, Any]:
    """The same columns under the name `quantity:qualifier`."""
    return {f"{name}:{qualifier}": value for name, value in columns.items()}


def rated(column: str, rate: Rate) -> dict[str, Any]:
    """A rate as a column with its interval, not rounded: `a:q`, `a_low:q` and `a_high:q`."""
    return dict(zip((column, *bounds(column)), (rate.value, *rate.interval), strict=True))
