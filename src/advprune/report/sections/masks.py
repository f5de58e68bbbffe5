"""Compression by masks: curves over compression, variants of GAP, and GAP beside its control.

Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using Greedy
Adversarial Pruning (2022): networks compressed by GAP resist images crafted on their uncompressed
parents. The control is random pruning at the same setting, or at the nearest clean accuracy.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from advprune.core.params import FROM_DENSE
from advprune.evaluate.compare import ALPHA, Comparison, at_chance
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.report.formats import number
from advprune.report.run import grouped
from advprune.report.section import Chart, Model, Part, Parts, Run, section
from advprune.report.sections.verdict import iterative
from advprune.report.tables import Row, accuracies, compared, explained, rated, tested

CONTROL, GREEDY = "random", ("GAP_global", "GAP_layer")
AMOUNTS = {"compression", "sparsity", "finetune"}  # keys that do not make a variant


@dataclass(frozen=True, eq=False)
class Point:
    """A family at one setting, of the leaderboard or of a study. given: as the settings write it; a
    bare number is a compression. white: records under each attack on itself, by name. transferred:
    on images of its dense network, by attack."""

    family: str
    given: Any
    sparsity: float
    white: dict[str, pd.DataFrame]
    transferred: dict[str, pd.DataFrame]

    @property
    def setting(self) -> dict[str, Any]:
        """As a mapping, keys without a value left out."""
        mapping = self.given if isinstance(self.given, dict) else {"compression": self.given}
        return {key: value for key, value in mapping.items() if value is not None}

    @property
    def is_plain(self) -> bool:
        """Whether it is its family's plain form, not a variant of GAP."""
        return self.family not in GREEDY or set(self.setting) <= AMOUNTS

    @property
    def words(self) -> str:
        """Its setting without the fine-tuning."""
        return number({k: v for k, v in self.setting.items() if k != "finetune"})


@section("Compression by masks", order=50)
def masks(run: Run) -> Parts:
    """GAP beside random pruning, the curves over compression, and all settings behind them."""
    if not (studies := run.studies_of("compression")):
        return
    run = run.swept
    found = by_family(run)
    marks, axes = curves(run, found), ("compression", "accuracy", "family", "images")
    look: Row = {"interval": True, "ordered": True, "hover": ("setting",)}
    yield Part(
        "Accuracy over compression",
        "Compression is the number of all parameters over that of nonzero ones. White-box images "
        f"are crafted on the model itself by {run.main_words}, transfer images on the "
        f"dense network; n = {run.n}.",
        chart=Chart("compression", "line", marks, *axes, **look),
    )
    yield Part(
        "GAP against random pruning",
        "Accuracy on images crafted on the dense network, compared with random pruning (McNemar) "
        "at the same setting or, where clean accuracies differ significantly, at the one nearest "
        f"in clean accuracy. {explained('all settings and attacks')} "
        "Unmatched: clean accuracies differ significantly or are at chance.",
        against_control(run, found),
    )
    yield Part("All settings, and variants of GAP", "", every(run, found), folded=True)
    for name in studies:
        yield from iterative(run.studies[name], "family", "value")


def point_of(run: Run, model: Model) -> Point:
    """A model of the leaderboard as a point."""
    white = {name: model.attack(name) for name in run.attacks}
    transferred = {name: model.transferred(name) for name in run.transfer_attacks}
    setting = run.params.setting(model.name)
    return Point(model.family, setting, model.card["sparsity"], white, transferred)


def by_family(run: Run) -> dict[str, list[Point]]:
    """All points of each family: models that are made from the network of a study, by a studied
    family or with fine-tuning, then the settings of compression studies in params order."""
    studies = run.studies_of("compression")
    parents = {study.of for study in studies.values()}
    studied = {family for study in studies.values() for family in study.points}
    made = [m for m in run.compressed if m.parent in parents and m.do == "prune"]
    points = [point_of(run, model) for model in made]
    points = [p for p in points if p.family in studied or "finetune" in p.setting]
    for name, study in studies.items():
        for (family, order), rows in run.studies[name].groupby(["family", "order"], sort=False):
            own = grouped(rows, "attack")
            crafted = [attack for attack in own if attack.startswith(FROM_DENSE)]
            there = {attack.removeprefix(FROM_DENSE): own.pop(attack) for attack in crafted}
            given, sparsity = study.points[family][order], float(rows.sparsity.iloc[0])
            points.append(Point(str(family), given, sparsity, own, there))
    families = dict.fromkeys(point.family for point in points)
    return {family: [p for p in points if p.family == family] for family in families}


def nearest(run: Run, point: Point, controls: list[Point]) -> Point:
    """The control at the same setting, where the clean accuracies do not differ significantly; else
    the one of the nearest clean accuracy."""
    own = point.white[run.main]

    def distance(control: Point) -> tuple[bool, int]:
        other = control.white[run.main]
        same = control.setting == point.setting and not compared(run, own, other, "clean").differs
        return not same, abs(clean_accuracy(own).hits - clean_accuracy(other).hits)

    return min(controls, key=distance)


def every(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """One row per point: clean, white-box and transfer accuracy."""
    return pd.DataFrame(
        {"family": point.family, "setting": point.words}
        | {"fine_tuned": bool(point.setting.get("finetune")), "sparsity": point.sparsity}
        | rated("clean_accuracy", clean_accuracy(point.white[run.main]))
        | accuracies({"white-box": point.white[run.main]})
        | accuracies({f"transfer, {name}": table for name, table in point.transferred.items()})
        for own in found.values()
        for point in own
    )


def curves(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """Clean, white-box and transfer accuracy over compression, tuned as the family's first."""
    lines = []
    for family, own in found.items():
        known = [p for p in own if p.is_plain and p.setting.get("compression")]
        alike = [p for p in known if p.setting.get("finetune") == known[0].setting.get("finetune")]
        for point in alike if len(alike) > 1 else ():
            white, transferred = point.white[run.main], point.transferred[run.main]
            x = {"family": family, "compression": float(point.setting["compression"])}
            for images, one in (
                ("clean", clean_accuracy(white)),
                ("white-box", remnant_accuracy(white)),
                ("transfer", remnant_accuracy(transferred)),
            ):
                more = {"setting": point.words, "images": images}
                lines.append(x | more | rated("accuracy", one))
    table = pd.DataFrame(lines)
    return table.sort_values("compression", kind="stable", ignore_index=True) if lines else table


def against_control(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """One row per plain setting of GAP and attack, beside its control (`nearest`);
    only those of equal clean accuracy are tests of the question."""
    rows: list[tuple[Row, Comparison | None]] = []
    found = {key: [p for p in own if len(p.transferred[run.main])] for key, own in found.items()}
    controls = found.get(CONTROL, [])
    own = [point for family in GREEDY for point in found.get(family, []) if point.is_plain]
    for point in own if controls else []:
        control = nearest(run, point, controls)
        white, other = point.white[run.main], control.white[run.main]
        clean = compared(run, white, other, "clean")
        matched = clean.p >= ALPHA and not at_chance(white) and not at_chance(other)
        for attack in run.transfer_attacks:
            test = compared(run, point.transferred[attack], control.transferred[attack])
            row: Row = {"family": point.family, "setting": point.words, "control": control.words}
            row |= {"clean_accuracy": clean.first.value}
            row |= {"clean_accuracy:control": clean.second.value, "attack": attack}
            row |= rated("transfer_accuracy", test.first)
            row |= rated("transfer_accuracy:control", test.second)
            row |= accuracies({"white-box": white}) | ({} if matched else {"outcome": "unmatched"})
            rows.append((row, test if matched else None))
    return pd.DataFrame(tested(rows))
