"""Published figures beside ours: rarely the same experiment, so each states its regime."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.report.formats import budget, number
from advprune.report.points import point_of
from advprune.report.published import SYSTEMS, Figure
from advprune.report.results import rated
from advprune.report.run import Run
from advprune.report.section import Part, section
from advprune.report.sections import bitflips, masks, protocol, seeds
from advprune.report.sections.sweep import sweep

NOT_RUN = "not run here"
Ours = Iterator[tuple[str, dict[str, Any]]]  # the key of a published figure, our columns beside it


@section("Published results beside ours", order=120)
def published(run: Run) -> list[Part]:
    """One table for each published system that this run has results for."""
    ours = {key: row for rows in (_sweep, _gap, _sap, _flips, _seeds) for key, row in rows(run)}
    here = (
        f"Here: {run.source}, {run.profile.model.described}, eps {budget(run.main_attack.eps)} "
        "unless stated otherwise. †: quoted from another paper, not read in its source."
    )
    return [
        Part(
            system.title,
            f"Source: {system.source}. {system.differs} {here}",
            beside(system.figures, ours),
            folded=True,
        )
        for system in SYSTEMS
        if any(one.key in ours for one in system.figures)
    ]


def beside(figures: tuple[Figure, ...], ours: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row per published figure, with ours of the same key."""
    return pd.DataFrame(
        {"published_setting": one.setting, "published": one.figure + (" †" if one.unread else "")}
        | ours.get(one.key, {"ours": NOT_RUN})
        for one in figures
    )


def _sweep(run: Run) -> Ours:
    """Settings of E, S, R and int8 under the attacks of nn-prune's table."""
    parts = sweep(run)
    table = parts[0].table if parts else None
    for row in [] if table is None else table.to_dict("records"):
        name = f"{row['family']} {number(row['setting'])}"
        attacks = [k for k in map(str, row) if k.partition(":")[0].startswith("accuracy")]
        columns = ("prune_ratio", "clean_accuracy", *attacks)
        yield name, {"ours": name} | {key: row[key] for key in columns}


def _gap(run: Run) -> Ours:
    """GAP on images of the network that it resists, beside random pruning of nearest clean
    accuracy; a quantized copy on its float one's."""
    studied = run.swept  # on as many images as the settings of the study
    controls = masks.subjects(studied).get(masks.CONTROL, [])
    for model in run.compressed:
        copied = model.kind == "quantized"
        of = model.parent if copied else model.root
        family = run.model(of).family if copied and run.has(of) else model.family
        if family in masks.GREEDY:
            white = model.attack(run.main)
            row: dict[str, Any] = {"ours": model.name, "images_of": of}
            row |= rated("clean_accuracy", clean_accuracy(white))
            row |= rated("transfer_accuracy", remnant_accuracy(model.transferred(run.main, of)))
            row |= rated("accuracy:white-box", remnant_accuracy(white))
            if controls and not copied and model.parent == of:
                own = point_of(studied, studied.model(model.name))
                control = masks.nearest(studied, own, controls)
                row["control"] = f"{masks.CONTROL} {masks.words(control)}"
                row |= rated("clean_accuracy:control", clean_accuracy(control.white[run.main]))
                left = remnant_accuracy(control.transferred[run.main])
                row |= rated("transfer_accuracy:control", left)
            yield "int8" if copied else family, row


def _sap(run: Run) -> Ours:
    """The gain at the smallest budget of FGSM, and the attacks on both variants of SAP."""
    members, attacks = protocol.members(run), run.profile.protocol.adaptive
    most = max((one.steps for one in attacks.values()), default=0)
    for own, dense in protocol.pairs(members)[:1]:
        conv = [one for one in members if one.on_convolutions and one.parent == own.parent]
        smallest = [eps for eps in own.over_budgets(protocol.FGSM) if eps > 0][:1]
        chosen = [("gain", own, protocol.FGSM, eps) for eps in smallest]
        for member in (*conv, own):
            for name, table in member.adaptive(run).items():
                eps, is_own = float(table.eps.iloc[0]), member is own
                if attacks[name].draws == 1 and attacks[name].steps == most:
                    chosen.append(("not broken" if is_own else "broken", member, name, eps))
                elif attacks[name].backward == "identity" and is_own:
                    chosen.append(("bpda", member, name, eps))
        for key, member, attack, eps in chosen:
            row: dict[str, Any] = {"ours": f"{member.name}, {attack}", "eps": eps}
            for name, one in (("SAP", member), ("dense", dense)):
                if (records := one.over_budgets(attack).get(eps)) is not None:
                    row |= rated(f"accuracy:{name}", remnant_accuracy(records))
            yield key, row


def _flips(run: Run) -> Ours:
    """Entries by how they are stored: bits of the first dense network, channels of binary ones."""
    entries = bitflips.entries(run)
    table = bitflips.table_of(entries)
    for entry in reversed(entries):
        row = table[(table.entry == entry.name) & (table.search == bitflips.UNTARGETED)].iloc[0]
        columns = ("clean_accuracy", *bitflips.counts(entry.under()), "accuracy:random flips")
        setting = run.params.setting(entry.model)
        kind = f"{entry.bits} bits" if entry.model == run.roots[0].name else ""
        kind = "clustered" if getattr(setting, "clustering", 0) else kind
        kind = getattr(setting, "channels", "") or kind
        yield kind, {"ours": entry.name} | {key: row[key] for key in columns}


def _seeds(run: Run) -> Ours:
    """Trained points of the first study of seeds by family and sparsity, the first of each."""
    for name in list(run.studies_of("seeds"))[:1]:
        for point in reversed(seeds.points_of(run, name)):
            if point.is_tuned and point.sparsity is not None:
                row: dict[str, Any] = {"ours": point.name}
                row |= seeds.ranged("clean_accuracy", point.mean("clean"))
                row |= seeds.ranged("robust_accuracy", point.mean("robust"))
                yield f"{point.family} {point.sparsity}", row
