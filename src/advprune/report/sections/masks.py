"""Compression by masks: curves over compression, variants of GAP, and GAP beside its control.

Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using Greedy
Adversarial Pruning (2022): networks compressed by GAP resist images crafted on their uncompressed
parents. The control is random pruning at the nearest clean accuracy.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.evaluate.compare import ALPHA, Comparison, at_chance
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.report.compared import compared, explained, tested
from advprune.report.points import GREEDY, Point, by_family, nearest
from advprune.report.results import accuracies, rated
from advprune.report.section import Chart, Part, Run, section
from advprune.report.sections.verdict import iterative

CONTROL = "random"
UNMATCHED = "unmatched"


@section("Compression by masks", order=50)
def masks(run: Run) -> Iterator[Part]:
    """GAP beside random pruning, the curves over compression, and all settings behind them."""
    if not (studies := run.studies_of("compression")):
        return
    run = run.swept
    found = by_family(run)
    axes = ("compression", "accuracy", "family", "images")
    look: dict[str, Any] = {"interval": True, "ordered": True, "hover": ("setting",)}
    yield Part(
        "Accuracy over compression",
        "Compression is the number of all parameters over that of nonzero ones. White-box images "
        f"are crafted on the model itself by {run.main_words}, transfer images on the "
        f"uncompressed network; n = {run.n}.",
        chart=Chart("compression", "line", curves(run, found), *axes, **look),
    )
    yield Part(
        "GAP against random pruning",
        "Accuracy on images crafted on the uncompressed network, compared with random pruning at "
        f"the setting nearest in clean accuracy (McNemar). {explained('all settings and attacks')} "
        "Unmatched: clean accuracies differ significantly or are at chance.",
        against_control(run, found),
    )
    yield Part("All settings, and variants of GAP", "", every(run, found), folded=True)
    for name in studies:
        yield from iterative(run.studies[name], "family", "value")


def every(run: Run, found: dict[str, list[Point]]) -> pd.DataFrame:
    """One row per point: clean, white-box and transfer accuracy."""
    rows = []
    for point in (point for own in found.values() for point in own):
        white, tuned = point.white[run.main], bool(point.setting.get("finetune"))
        row: dict[str, Any] = {"family": point.family, "setting": point.words}
        row |= {"fine_tuned": tuned, "sparsity": point.sparsity}
        row |= rated("clean_accuracy", clean_accuracy(white)) | accuracies({"white-box": white})
        there = {f"transfer, {attack}": records for attack, records in point.transferred.items()}
        rows.append(row | accuracies(there))
    return pd.DataFrame(rows)


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
    """One row per setting of GAP and attack, beside random pruning of nearest clean accuracy.

    Only those of equal clean accuracy are tests of the question.
    """
    rows: list[tuple[dict[str, Any], Comparison | None]] = []
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
            row: dict[str, Any] = {"family": point.family, "setting": point.words}
            row |= {"control": control.words, "clean_accuracy": clean.first.value}
            row |= {"clean_accuracy:control": clean.second.value, "attack": attack}
            row |= rated("transfer_accuracy", test.first)
            row |= rated("transfer_accuracy:control", test.second)
            row |= accuracies({"white-box": white}) | ({} if matched else {"outcome": UNMATCHED})
            rows.append((row, test if matched else None))
    return pd.DataFrame(tested(rows))
