"""Compression by masks: curves over compression, variants of GAP, and GAP beside its control.

Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using Greedy
Adversarial Pruning (2022): networks compressed by GAP resist images crafted on their uncompressed
parents. The control is random pruning at the nearest clean accuracy.
"""

from typing import Any

import pandas as pd

from advprune.evaluate.compare import ALPHA, Comparison, at_chance, compare, corrected, right
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import mcnemar, rate
from advprune.report.chart import Chart
from advprune.report.formats import budget, listed, number, percent
from advprune.report.points import Point, exchanged, point_of, points
from advprune.report.results import outcome, rated
from advprune.report.run import Model, Run
from advprune.report.section import Part, section
from advprune.report.sections.transfer import all_sources

GREEDY = ("GAP_global", "GAP_layer")
CONTROL = "random"
AMOUNTS = {"compression", "sparsity", "images", "finetune"}  # keys that do not make a variant
INERT = 0.05  # share of parameters without a gradient from which on it is mentioned


@section("Compression by masks", order=50)
def masks(run: Run) -> list[Part]:
    """GAP beside random pruning, the curves over compression, and all settings behind them."""
    if not run.studies_of("compression"):
        return []
    run = run.swept
    found = subjects(run)
    plain = [point for own in found.values() for point in own if not is_variant(point)]
    curve = Chart(
        "compression",
        "line",
        curves(run, found),
        x="compression",
        y="accuracy",
        series="family",
        low="accuracy_low",
        high="accuracy_high",
        panel="images",
        log_x=True,
        hover=("setting",),
    )
    attack = f"{run.main} (eps {budget(run.main_attack.eps)}, n = {run.n})"
    parts = [
        Part(
            "Accuracy over compression",
            f"Compression: all parameters over those that are not zero. Attack: {attack}; transfer: "
            f"images crafted on the uncompressed network.{_inert(run)}",
            chart=curve,
        )
    ]
    if len(table := against_control(run, found)):
        text = (
            "Accuracy on images of the uncompressed network, beside random pruning at the setting "
            "nearest in clean accuracy. Outcome by McNemar's test, p corrected for the attacks "
            "(Holm); unmatched: the clean accuracies differ (p < 0.05) or the control is at chance."
        )
        parts.append(Part("GAP against random pruning", text, table))
    if len(table := other_sources(run)):
        text = (
            f"Images of the network's parent beside those of all sources, attacks "
            f"{listed(exchanged(run))}; and the parent itself on images of unrelated networks, which "
            f"is what being another network does without any pruning. Parent's images: {run.main}. "
            "p: McNemar on the same images."
        )
        parts.append(Part("GAP on images of other networks", text, table))
    parts.append(Part("Schemes and settings", "", rows(run, plain), folded=True))
    if len(table := variants(run, found)):
        text = "Variants of GAP beside the scheme itself, as much compressed and fine-tuned alike."
        parts.append(Part("Variants of GAP", text, table, folded=True))
    return parts


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a compression; keys without a value are left out."""
    mapping = setting if isinstance(setting, dict) else {"compression": setting}
    return {key: value for key, value in mapping.items() if value is not None}


def is_variant(point: Point) -> bool:
    """Whether a point is GAP with other choices than its two schemes make."""
    return point.family in GREEDY and not set(as_mapping(point.setting)) <= AMOUNTS


def subjects(run: Run) -> dict[str, list[Point]]:
    """All that is known of each scheme on the same images: its model, then the study's points."""
    studied = points(run, "compression")
    found: dict[str, list[Point]] = {}
    for model in _masked(run, studied):
        found.setdefault(model.family, []).append(point_of(run, model))
    for family, own in studied.items():
        found.setdefault(family, []).extend(own)
    return found


def _masked(run: Run, studied: dict[str, list[Point]]) -> list[Model]:
    """Models of the study's network made by a mask: of a studied family, or fine-tuned."""
    parents = {study.of for study in run.studies_of("compression").values()}
    made = [m for m in run.compressed if m.parent in parents and m.do == "prune"]
    return [
        model
        for model in made
        if model.family in studied or "finetune" in as_mapping(run.params.setting(model.name))
    ]


def words(point: Point) -> str:
    """A setting without its fine-tuning."""
    return number({k: v for k, v in as_mapping(point.setting).items() if k != "finetune"})


def rows(run: Run, chosen: list[Point]) -> pd.DataFrame:
    """One row per scheme and setting: size, clean accuracy, white-box beside transfer."""
    return pd.DataFrame([_row(run, point) for point in chosen])


def _row(run: Run, point: Point) -> dict[str, Any]:
    white, tuned = point.white[run.main], bool(as_mapping(point.setting).get("finetune"))
    row: dict[str, Any] = {"family": point.family, "setting": words(point)}
    row |= {"fine_tuned": tuned, "sparsity": point.sparsity}
    row |= rated("clean_accuracy", clean_accuracy(white))
    row |= rated("accuracy:white-box", remnant_accuracy(white))
    for attack, records in point.transferred.items():
        row |= rated(f"accuracy:transfer, {attack}", remnant_accuracy(records))
    return row


def variants(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """The variants of GAP, after the scheme at the same compression and fine-tuning."""
    chosen: list[Point] = []
    for family in GREEDY:
        own = found.get(family, [])
        different = [point for point in own if is_variant(point)]
        amounts = [_amount(point) for point in different]
        chosen += [p for p in own if not is_variant(p) and _amount(p) in amounts] + different
    return rows(run, chosen)


def _amount(point: Point) -> list[Any]:
    return [as_mapping(point.setting).get(key) for key in ("compression", "sparsity", "finetune")]


def curves(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """Clean, white-box and transfer accuracy over compression, fine-tuned as each scheme's first."""
    lines = []
    for family, own in found.items():
        known = [p for p in own if not is_variant(p) and as_mapping(p.setting).get("compression")]
        tuned = [as_mapping(point.setting).get("finetune") for point in known]
        alike = [p for p, how in zip(known, tuned, strict=True) if how == tuned[0]]
        if len(alike) < 2:
            continue
        for point in sorted(alike, key=lambda one: as_mapping(one.setting)["compression"]):
            white, carried = point.white[run.main], point.transferred[run.main]
            rates = {
                "clean": clean_accuracy(white),
                "white-box": remnant_accuracy(white),
                "transfer": remnant_accuracy(carried),
            }
            x = {"family": family, "compression": float(as_mapping(point.setting)["compression"])}
            setting = {"setting": words(point)}
            lines += [x | setting | {"images": k} | rated("accuracy", r) for k, r in rates.items()]
    columns = ["family", "compression", "setting", "images", "accuracy"]
    return pd.DataFrame(lines, columns=[*columns, "accuracy_low", "accuracy_high"])


def against_control(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """One row per GAP scheme and attack, beside random pruning of the nearest clean accuracy."""
    controls = found.get(CONTROL, [])
    lines: list[dict[str, Any]] = []
    for family in GREEDY:
        if controls and (point := chosen_point(run, found.get(family, []), controls)):
            lines += _against(run, point, nearest(run, point, controls))
    return pd.DataFrame(lines)


def chosen_point(run: Run, own: list[Point], controls: list[Point]) -> Point | None:
    """The leaderboard's model; where there is none, the first point that has a fair control."""
    kept = {m.family for m in run.compressed}
    if not own or own[0].family in kept:
        return own[0] if own else None
    alike = [
        point for point in own if set(as_mapping(point.setting)) == set(as_mapping(own[0].setting))
    ]
    fair = [point for point in alike if is_fair(run, point, nearest(run, point, controls))]
    return (fair or alike)[0]


def nearest(run: Run, point: Point, controls: list[Point]) -> Point:
    """The control of the nearest clean accuracy; of equals the one at the same setting."""

    def distance(control: Point) -> tuple[float, bool]:
        hits = [clean_accuracy(one.white[run.main]).hits for one in (control, point)]
        return abs(hits[0] - hits[1]), as_mapping(control.setting) != as_mapping(point.setting)

    return min(controls, key=distance)


def is_fair(run: Run, point: Point, control: Point) -> bool:
    """Whether neither is at chance and their clean accuracies do not differ significantly."""
    white, other = point.white[run.main], control.white[run.main]
    same = compare(white, other, "clean").p >= ALPHA
    return same and not at_chance(white) and not at_chance(other)


def _against(run: Run, point: Point, control: Point) -> list[dict[str, Any]]:
    clean = compare(point.white[run.main], control.white[run.main], "clean")
    attacks = exchanged(run)
    tests = corrected([compare(point.transferred[a], control.transferred[a]) for a in attacks])
    fair = is_fair(run, point, control)

    def row(attack: str, test: Comparison) -> dict[str, Any]:
        white = remnant_accuracy(point.white[run.main])
        return {
            **{"family": point.family, "setting": words(point), "control": words(control)},
            **{"clean_accuracy": clean.first.value, "clean_accuracy:control": clean.second.value},
            **{"p:clean": clean.p, "attack": attack},
            **rated("transfer_accuracy", test.first),
            **rated("transfer_accuracy:control", test.second),
            **{"p": test.p, "outcome": outcome(test) if fair or test.void else "unmatched"},
            **rated("accuracy:white-box", white),
        }

    return [row(attack, test) for attack, test in zip(attacks, tests, strict=True)]


def other_sources(run: Run) -> pd.DataFrame:
    """One row per GAP model: all sources against its parent's images, unrelated ones on the parent.

    p:all sources: all sources against the parent alone. p:parent on <name>: the model on its
    parent's images against the parent on images of an unrelated network.
    """
    lines = []
    for model in run.compressed:
        if model.family not in GREEDY or model.transferred(run.main).empty:
            continue
        dense, carried = run.dense_of(model), model.transferred(run.main)
        left, from_dense = all_sources(run, model), right(carried)
        for attack in exchanged(run)[1:]:
            from_dense = from_dense & right(model.transferred(attack))
        row: dict[str, Any] = {"model": model.name}
        row |= rated("accuracy:parent's images", remnant_accuracy(carried))
        row |= rated("accuracy:parent's, all attacks", rate(from_dense))
        row |= rated("accuracy:all sources", rate(left))
        row["p:all sources"] = mcnemar(left, from_dense)
        for name in run.params.attackers():
            stranger = dense.transferred(run.main, name)
            if run.params.models[name].section == "surrogates" and len(stranger):
                test = compare(carried, stranger)
                row |= {f"accuracy:parent on {name}": test.second.value}
                row |= {f"p:parent on {name}": test.p}
        lines.append(row)
    return pd.DataFrame(lines)


def _inert(run: Run) -> str:
    """A sentence where much of the dense network meets nothing but padding."""
    inert = run.roots[0].card.get("inert")
    if not inert or inert <= INERT:
        return ""
    return (
        f" {percent(inert)} % of the dense network's parameters meet only padding and have no "
        "gradient; schemes that rank by gradients remove them first or last."
    )
