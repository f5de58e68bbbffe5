"""The results of a run: one row per model, raw numbers. Everything that is shown starts here."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from advprune.core.errors import UserError
from advprune.evaluate import metrics
from advprune.evaluate.compare import right
from advprune.evaluate.flips import flips_metric
from advprune.evaluate.measures import remnant_accuracy, robust_rates
from advprune.evaluate.robust import area
from advprune.evaluate.statistics import median_distance
from advprune.evaluate.transfer import transfer_success
from advprune.report.formats import bounds, number, with_interval
from advprune.report.run import NOT_RUN, Model, Run
from advprune.report.tables import Row, against_dense, qualified

RESULTS = "results.csv"
CLAIMS = "claims.csv"
DVC_METRICS = {  # the keys of metrics/<profile>/<model>.json, and their columns here
    "n": "n",
    "clean_accuracy": "clean_accuracy",
    "robust_accuracy": "robust_accuracy",
    "robust_low": "robust_accuracy_low",
    "robust_high": "robust_accuracy_high",
    "median_distance": "median_distance",
    "sparsity": "sparsity",
    "bits": "bits",
    "flips_to_chance": "flips_to_chance",
    "verdict": "verdict",
}
HEX = frozenset("0123456789abcdef")
DISTANCE = "<f2"  # type of a stored distance: four hexadecimal digits
SLACK = 1e-3  # relative rounding error of a stored distance
FINGERPRINT = 16  # hex digits of the sha256 of the test images and labels, in order
REQUIRED = ("model", "images", "robust_images", "image_distances")
TEXTS = (
    *("model", "family", "parent", "root", "recipe", "do", "kind", "group", "setting", "attack"),
    *("norm", "against_dense", "distance_against_dense", "verdict", "verdict_against"),
    *("images", "robust_images", "image_distances"),
)
OUTCOMES = TEXTS[-2:]  # image by image
ATTACK = "accuracy:"  # begins the columns of accuracy under one attack, by its name
CARD = (
    *("prune_ratio", "sparsity", "bits", "parameters", "nonzero", "macs", "file_bytes"),
    *("stored_bits", "twin_agreement"),
)
AGAINST = (  # empty for a dense network
    *("robust_difference", *bounds("robust_difference"), "robust_detectable", "p_against_dense"),
    *("against_dense", "distance_difference", *bounds("distance_difference")),
    *("p_distance", "distance_against_dense"),
)


@cache
def results(run: Run) -> pd.DataFrame:
    """One row per model in the order of the leaderboard; unknown values are None."""
    return pd.DataFrame([_row(run, model) for model in run.models])


def declared(run: Run) -> pd.DataFrame:
    """The results, and after them a row for each model that was not run: its verdict says so."""
    names = [one.name for one in run.absent if one.kind == "model"]
    if not names:
        return results(run)
    rest = pd.DataFrame({"model": names, "verdict": NOT_RUN}, dtype=object)
    return pd.concat([results(run).astype(object), rest], ignore_index=True)


def _row(run: Run, model: Model) -> Row:
    """Rates and calibration under attack are the main attack's; robust rates, distances and the
    comparison with the dense network are of everything within the budget."""
    card, main, distances = model.card, run.main_attack, run.distances(model)
    facts = ("family", "parent", "root", "recipe", "do", "kind", "group")
    row: Row = {"model": model.name} | {name: getattr(model, name) for name in facts}
    row["setting"] = None if card["setting"] is None else number(card["setting"])
    row |= {"attack": run.main, "norm": main.norm, "eps": main.eps}
    rates = metrics(model.attack(run.main))
    row |= {name.replace("remnant", "main"): value for name, value in rates.items()}
    row |= robust_rates(run.robust(model))
    row |= _rounded(with_interval("median_distance", *median_distance(distances)))
    row |= {"area_accuracy": round(area(distances, 2 * main.eps), 6)} | dict.fromkeys(AGAINST)
    if against := against_dense(run).get(model):
        robust, far = against.robust, against.distance
        row |= _rounded(with_interval("robust_difference", robust.difference, *robust.interval))
        row |= _rounded({"robust_detectable": robust.detectable, "p_against_dense": robust.p})
        row |= _rounded(with_interval("distance_difference", far.difference, *far.interval))
        row |= _rounded({"p_distance": far.p})
        row |= {"against_dense": robust.outcome, "distance_against_dense": far.outcome}
    transferred = model.transferred(run.main)
    success = transfer_success(transferred, run.dense_of(model).attack(run.main))
    row |= remnant_accuracy(transferred).columns("transfer_accuracy")
    row |= success.columns("transfer_success_rate") | flips_metric(run.flips(model))
    verdict = run.verdict(model)
    doubts = dict.fromkeys(check.name for check in verdict.against)
    row |= {"verdict": verdict.level, "verdict_against": "; ".join(doubts)}
    for name in run.attack_names(model):
        row |= qualified(remnant_accuracy(model.attack(name)).columns("accuracy"), name)
    row |= {key: card[key] for key in CARD}
    # Image by image, so that two revisions can be compared on the same images (`report.gate`).
    labels = run.models[0].attack(run.main).label.to_numpy(dtype="<i8")
    images = hashlib.sha256(run.clean_images.tobytes() + labels.tobytes()).hexdigest()
    robust_images = "".join("01"[hit] for hit in right(run.robust(model)).astype(int))
    row |= {"images": images[:FINGERPRINT], "robust_images": robust_images}
    return row | {"image_distances": distances.astype(DISTANCE).tobytes().hex()}


def _rounded(numbers: dict[str, float]) -> dict[str, float | None]:
    """To 6 places; None where one is infinite."""
    return {name: round(v, 6) if isfinite(v) else None for name, v in numbers.items()}


def without_own_transfer(table: pd.DataFrame) -> pd.DataFrame:
    """The results without transfer for dense networks, whose own images are white-box."""
    own, columns = table.model == table.root, table.columns.str.startswith("transfer_")
    return table.assign(**{name: table[name].mask(own) for name in table.columns[columns]})


def metrics_of(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The DVC metrics of each model, by its name: the columns of `DVC_METRICS`, to 4 places."""
    chosen = table[["model", *DVC_METRICS.values()]].round(4).astype(object)
    chosen = chosen.where(chosen.notna(), None)
    rows = chosen.itertuples(index=False, name=None)
    return {name: dict(zip(DVC_METRICS, values, strict=True)) for name, *values in rows}


def distances(row: Mapping[Any, Any]) -> np.ndarray:
    """The distances `[n]` of a row, as they are stored."""
    return np.frombuffer(bytes.fromhex(row["image_distances"]), DISTANCE).astype(float)


def read_results(text: str, where: str) -> pd.DataFrame:
    """The results from the text of a results.csv; UserError where it is damaged, or outcomes and
    distances contradict each other."""

    def damaged(what: object) -> UserError:
        return UserError(f"{where} is damaged: {what}")

    types: defaultdict[str, type] = defaultdict(lambda: float, dict.fromkeys(TEXTS, str))
    try:
        table = pd.read_csv(io.StringIO(text), dtype=types, keep_default_na=False, na_values=[""])
    except (ValueError, pd.errors.ParserError) as error:  # of a number, too
        raise damaged(error) from error
    shown = "eps", "norm", "transfer_accuracy", "distance_against_dense"
    if missing := [c for c in (*REQUIRED, *shown, *DVC_METRICS.values()) if c not in table]:
        raise damaged(f"it has no column {missing[0]}")
    is_run = table.verdict != NOT_RUN
    if table.model.isna().any() or table.model.duplicated().any() or not is_run.any():
        raise damaged("models are missing or named twice")
    if table[~is_run].drop(columns=["model", "verdict"]).notna().any(axis=None):
        raise damaged("a model that was not run has numbers")
    for row in table[is_run].to_dict("records"):
        model, hits, n = row["model"], str(row["robust_images"]), row["n"]
        if not set(hits) <= {"0", "1"} or len(hits) != n or not n or pd.isna(row["images"]):
            raise damaged(f"outcomes of {model} are not 0 or 1 per image")
        if len(digits := str(row["image_distances"])) != 4 * n or not set(digits) <= HEX:
            raise damaged(f"{model} lacks a distance for each image")
        if not 0 <= row["clean_accuracy"] <= 1 or not row["eps"] > 0:
            raise damaged(f"clean_accuracy of {model} is no rate, or eps no budget")
        if not abs(row["robust_accuracy"] - hits.count("1") / n) < 1e-6:
            raise damaged(f"robust_accuracy of {model} contradicts its outcomes")
        # An image is robust where the smallest change that fools it is beyond the budget.
        far = distances(row) / row["eps"] - 1
        if not np.where(np.array(list(hits)) == "1", far > -SLACK, far < SLACK).all():
            raise damaged(f"outcomes and distances of {model} contradict each other")
    if len(table[is_run][["n", "images"]].drop_duplicates()) > 1:
        raise damaged("models were tested on different images")
    return table
