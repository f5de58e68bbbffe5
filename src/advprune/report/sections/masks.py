"""Compression by masks: curves over compression, variants of GAP, and GAP beside its control.

Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using Greedy
Adversarial Pruning (2022): networks compressed by GAP resist images crafted on their uncompressed
parents. The control is random pruning at the nearest clean accuracy.
"""

from typing import Any

import pandas as pd

from advprune.evaluate.compare import (
    ALPHA,
    Comparison,
    at_chance,
    compare_hits,
    corrected,
    right,
)
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import rate
from advprune.report.chart import Chart
from advprune.report.compared import columns, compared, explained
from advprune.report.formats import budget, number, percent
from advprune.report.points import Point, exchanged, point_of, points
from advprune.report.results import qualified, rated
from advprune.report.run import Run
from advprune.report.section import Part, section
from advprune.report.sections.transfer import all_sources

GREEDY = ("GAP_global", "GAP_layer")
CONTROL = "random"
UNMATCHED = "unmatched"
AMOUNTS = {"compression", "sparsity", "images", "finetune"}  # keys that do not make a variant
INERT = 0.05  # share of parameters without a gradient from which on it is mentioned


@section("Compression by masks", order=50)
def masks(run: Run) -> list[Part]:
    """GAP beside random pruning, the curves over compression, and all settings behind them."""
    if not run.studies_of("compression"):
        return []
    run = run.swept
    found = subjects(run)
    inert = run.roots[0].card.get("inert") or 0.0
    about = (
        f"Compression: all parameters over those that are not zero. Attack: {run.main} (eps "
        f"{budget(run.main_attack.eps)}, n = {run.n}); transfer: images crafted on the "
        "uncompressed network."
    )
    if inert > INERT:
        about += (
            f" {percent(inert)} % of its parameters meet only padding and have no gradient; "
            "families that rank by gradients remove them first or last."
        )
    axes = ("compression", "accuracy", "family")
    look: dict[str, Any] = {"interval": True, "ordered": True, "hover": ("setting",)}
    curve = Chart("compression", "line", curves(run, found), *axes, panel="images", **look)
    parts = [Part("Accuracy over compression", about, chart=curve)]
    if len(table := against_control(run, found)):
        text = (
            "Accuracy on images of the uncompressed network, beside random pruning at the setting "
            "nearest in clean accuracy. p: McNemar on the same images. "
            f"{explained('all settings and attacks')} Unmatched: clean accuracies differ (p < "
            "0.05) or are at chance."
        )
        parts.append(Part("GAP against random pruning", text, table))
    if len(table := other_sources(run)):
        text = (
            f"GAP on its parent's images ({run.main}) and on those of all sources; and the parent "
            "on images of unrelated networks: the effect of being another network, not pruned. "
            f"{explained('all of this table')}"
        )
        parts.append(Part("GAP on images of other networks", text, table))
    every = pd.DataFrame([_row(run, point) for own in found.values() for point in own])
    return [*parts, Part("All settings, and variants of GAP", "", every, folded=True)]


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a compression; keys without a value are left out."""
    mapping = setting if isinstance(setting, dict) else {"compression": setting}
    return {key: value for key, value in mapping.items() if value is not None}


def is_plain(point: Point) -> bool:
    """Whether a point is its family's plain form, not a variant of GAP."""
    return point.family not in GREEDY or set(as_mapping(point.setting)) <= AMOUNTS


def words(point: Point) -> str:
    """A setting without its fine-tuning."""
    return number({k: v for k, v in as_mapping(point.setting).items() if k != "finetune"})


def subjects(run: Run) -> dict[str, list[Point]]:
    """All points of each family on the same images: its model, then the study's points.

    Models: those of the study's network of a studied family, or fine-tuned after pruning.
    """
    studied = points(run, "compression")
    parents = {study.of for study in run.studies_of("compression").values()}
    found: dict[str, list[Point]] = {}
    for model in run.compressed:
        if model.parent in parents and model.do == "prune":
            tuned = "finetune" in as_mapping(run.params.setting(model.name))
            if model.family in studied or tuned:
                found.setdefault(model.family, []).append(point_of(run, model))
    for family, own in studied.items():
        found.setdefault(family, []).extend(own)
    return found


def _row(run: Run, point: Point) -> dict[str, Any]:
    white, tuned = point.white[run.main], bool(as_mapping(point.setting).get("finetune"))
    row: dict[str, Any] = {"family": point.family, "setting": words(point)}
    row |= {"fine_tuned": tuned, "sparsity": point.sparsity}
    row |= rated("clean_accuracy", clean_accuracy(white))
    row |= rated("accuracy:white-box", remnant_accuracy(white))
    for attack, records in point.transferred.items():
        row |= rated(f"accuracy:transfer, {attack}", remnant_accuracy(records))
    return row


def curves(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """Clean, white-box and transfer accuracy over compression, tuned as the family's first."""
    lines = []
    for family, own in found.items():
        known = [p for p in own if is_plain(p) and as_mapping(p.setting).get("compression")]
        tuned = [as_mapping(point.setting).get("finetune") for point in known]
        alike = [p for p, how in zip(known, tuned, strict=True) if how == tuned[0]]
        for point in alike if len(alike) > 1 else ():
            white, transferred = point.white[run.main], point.transferred[run.main]
            rates = {
                "clean": clean_accuracy(white),
                "white-box": remnant_accuracy(white),
                "transfer": remnant_accuracy(transferred),
            }
            x = {"family": family, "compression": float(as_mapping(point.setting)["compression"])}
            x |= {"setting": words(point)}
            lines += [x | {"images": key} | rated("accuracy", one) for key, one in rates.items()]
    columns = ["family", "compression", "setting", "images", "accuracy"]
    table = pd.DataFrame(lines, columns=[*columns, "accuracy_low", "accuracy_high"])
    return table.sort_values("compression", kind="stable", ignore_index=True)


def against_control(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """One row per setting of GAP and attack, beside random pruning of nearest clean accuracy.

    Only those of equal clean accuracy are tests of the question.
    """
    rows: list[dict[str, Any]] = []
    tests: dict[int, Comparison] = {}
    controls = found.get(CONTROL, [])
    own = [point for family in GREEDY for point in found.get(family, []) if is_plain(point)]
    for point in own if controls else []:
        control = nearest(run, point, controls)
        white, other = point.white[run.main], control.white[run.main]
        clean = compared(run, white, other, "clean")
        is_fair = clean.p >= ALPHA and not at_chance(white) and not at_chance(other)
        for attack in exchanged(run):
            test = compared(run, point.transferred[attack], control.transferred[attack])
            row: dict[str, Any] = {"family": point.family, "setting": words(point)}
            row |= {"control": words(control), "clean_accuracy": clean.first.value}
            row |= {"clean_accuracy:control": clean.second.value, "attack": attack}
            row |= rated("transfer_accuracy", test.first)
            row |= rated("transfer_accuracy:control", test.second)
            row |= rated("accuracy:white-box", remnant_accuracy(white)) | {"outcome": UNMATCHED}
            if is_fair:
                tests[len(rows)] = test
            rows.append(row)
    for place, test in zip(tests, corrected(list(tests.values())), strict=True):
        rows[place] |= columns(test)
    return pd.DataFrame(rows)


def nearest(run: Run, point: Point, controls: list[Point]) -> Point:
    """The control of the nearest clean accuracy; in a tie, the one at the same setting."""

    def distance(control: Point) -> tuple[int, bool]:
        hits = [clean_accuracy(one.white[run.main]).hits for one in (control, point)]
        return abs(hits[0] - hits[1]), as_mapping(control.setting) != as_mapping(point.setting)

    return min(controls, key=distance)


def other_sources(run: Run) -> pd.DataFrame:
    """One row per GAP model: all sources against its parent's images, unrelated ones on the parent.

    all sources: against the parent's images alone. parent on <name>: the model on its parent's
    images against the parent on images of an unrelated network.
    """
    rows: list[dict[str, Any]] = []
    tests: dict[tuple[int, str], Comparison] = {}
    for model in run.compressed:
        if model.family not in GREEDY or model.transferred(run.main).empty:
            continue
        dense, transferred = run.dense_of(model), model.transferred(run.main)
        left, from_dense = all_sources(run, model), right(transferred)
        for attack in exchanged(run)[1:]:
            from_dense = from_dense & right(model.transferred(attack))
        row: dict[str, Any] = {"model": model.name}
        row |= rated("accuracy:parent's images", remnant_accuracy(transferred))
        row |= rated("accuracy:parent's, all attacks", rate(from_dense))
        row |= rated("accuracy:all sources", rate(left))
        tests[len(rows), "all sources"] = compare_hits(left, from_dense)
        for name in run.params.attackers():
            stranger = dense.transferred(run.main, name)
            if run.params.models[name].section == "surrogates" and len(stranger):
                test = compared(run, transferred, stranger)
                row |= {f"accuracy:parent on {name}": test.second.value}
                tests[len(rows), f"parent on {name}"] = test
        rows.append(row)
    for (place, what), test in zip(tests, corrected(list(tests.values())), strict=True):
        rows[place] |= qualified(columns(test), what)
    return pd.DataFrame(rows)
