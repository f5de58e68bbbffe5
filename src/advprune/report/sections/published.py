"""Published figures beside ours: hardly ever the same experiment, so each says its regime."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.report import published as theirs
from advprune.report.formats import bounds, budget
from advprune.report.results import rated
from advprune.report.run import Run
from advprune.report.section import Part, section
from advprune.report.sections import bitflips, masks, protocol, seeds
from advprune.report.sections.sweep import sweep

NOT_RUN = "not run here"
Figures = tuple[theirs.Figure, ...]
RANDOM = "accuracy:random flips"


@section("Published results beside ours", order=120)
def published(run: Run) -> list[Part]:
    """One table for each published system that this run has something to set beside."""
    if not run.models:
        return []
    here = (
        f"Here: {run.source}, {run.profile.model.described}, eps {budget(run.main_attack.eps)}, n "
        f"= {run.n}, if nothing else is said. †: known from others, not read at its source."
    )
    builders = (nn_prune, gap, sap, bfa, ra_bnn, hydra, benchmark)
    return [
        Part(one.title, f"Source: {one.source}. {one.differs} {here}", table, folded=True)
        for one, build in zip(theirs.SYSTEMS, builders, strict=True)
        if len(table := build(run, one.figures))
    ]


def nn_prune(run: Run, _: Figures) -> pd.DataFrame:
    """Their rows of E, S, R and int8 beside ours at the same setting, under the table's attacks."""
    parts = sweep(run)
    ours = parts[0].table if parts else None
    if ours is None:
        return pd.DataFrame()
    rows = []
    for (family, setting), values in theirs.NN_PRUNE.items():
        names = ("prune_ratio", "clean_accuracy", "remnant_accuracy")
        row: dict[str, Any] = {"family": family, "setting": setting}
        row |= {f"{k}:published": v / 100 for k, v in zip(names, values, strict=True)}
        found = ours[(ours.family == family) & (ours.setting.fillna("–") == setting)]
        row |= {k: found[k].iloc[0] if len(found) else None for k in names[:2]}
        for attack in run.attacks:
            for column, name in _ends(f"accuracy:{attack}", f"remnant_accuracy:{attack}"):
                row[name] = found[column].iloc[0] if len(found) else None
        rows.append(row)
    return pd.DataFrame(rows)


def _ends(column: str, name: str) -> Iterator[tuple[str, str]]:
    return zip((column, *bounds(column)), (name, *bounds(name)), strict=True)


def gap(run: Run, figures: Figures) -> pd.DataFrame:
    """GAP, its quantized copies and the control, on images of the network that they resist."""
    rows = []
    for model in run.compressed:
        of = model.parent if model.kind == "quantized" else model.root
        copied = run.has(of) and run.model(of).family in masks.GREEDY
        if model.family in masks.GREEDY or copied or model.family == masks.CONTROL:
            known = [one for one in figures if one.key == ("int8" if copied else "transfer")]
            row = _theirs(*known) if model.family != masks.CONTROL else {"published": "no control"}
            row["model"] = model.name
            carried, white = model.transferred(run.main, of), model.attack(run.main)
            row |= rated("clean_accuracy", clean_accuracy(white))
            row |= {"images_of": of} | rated("transfer_accuracy", remnant_accuracy(carried))
            rows.append(row | rated("accuracy:white-box", remnant_accuracy(white)))
    return pd.DataFrame(rows)


def sap(run: Run, figures: Figures) -> pd.DataFrame:
    """The published gain and the attacks on both variants, SAP beside its dense network."""
    members = protocol.members(run)
    rows: list[dict[str, Any]] = []
    for own, dense in protocol.pairs(members)[:1]:
        budgets = [eps for eps in own.over_budgets(protocol.FGSM) if eps > 0][:1]
        chosen = [("gain", own, protocol.FGSM, eps) for eps in budgets]
        conv = [m for m in members if m.on_convolutions and m.parent == own.parent]
        attacks = run.profile.protocol.adaptive
        for member in [*conv, own]:
            for name, table in member.adaptive(run).items():
                one, eps = attacks[name], float(table.eps.iloc[0])
                long = one.draws == 1 and one.steps == max(a.steps for a in attacks.values())
                if member is own and one.backward == "identity":
                    chosen.append(("bpda", member, name, eps))
                elif long:
                    chosen.append(("not broken" if member is own else "broken", member, name, eps))
        for key, member, attack, eps in chosen:
            pair = [one.over_budgets(attack).get(eps) for one in (member, dense)]
            row = _theirs(*(one for one in figures if one.key == key))
            row |= {"member": member.name, "attack": attack, "eps": eps}
            for name, records in zip(("SAP", "dense"), pair, strict=True):
                if records is not None:
                    row |= rated(f"accuracy:{name}", remnant_accuracy(records))
            rows.append(row)
    return pd.DataFrame(rows)


def bfa(run: Run, figures: Figures) -> pd.DataFrame:
    """BFA: published counts beside the entry that is stored alike."""
    return _flips(run, figures)


def ra_bnn(run: Run, figures: Figures) -> pd.DataFrame:
    """RA-BNN: published counts beside binary networks of the same channels."""
    return _flips(run, figures)


def _flips(run: Run, figures: Figures) -> pd.DataFrame:
    entries = bitflips.entries(run)
    if not entries:
        return pd.DataFrame()
    table = bitflips.table_of(entries)
    ours = {
        row["entry"]: row for row in table[table.search == bitflips.UNTARGETED].to_dict("records")
    }
    by_kind = {_stored(run, entry): entry.name for entry in reversed(entries)}
    columns = ("entry", "clean_accuracy", *bitflips.counts(entries[0].under()), RANDOM)
    rows = []
    for one in figures:
        row: dict[str, Any] = _theirs(one) | {"entry": NOT_RUN}
        if found := ours.get(by_kind.get(BESIDE[one.key], "")):
            row |= {name: found[name] for name in columns}
        rows.append(row)
    return pd.DataFrame(rows)


def _theirs(one: theirs.Figure) -> dict[str, Any]:
    mark = " †" if one.unread else ""
    return {"published_setting": one.setting, "published": one.figure + mark}


# What is set beside a published count: bits of the first dense network, of one that was trained to
# cluster its weights, or the channels of a binary network.
BESIDE: Mapping[str, str] = {
    **{"imagenet": "8 bits", "8 bits": "8 bits", "random": "8 bits", "4 bits": "4 bits"},
    **{"clustered": "clustered", "binary": "base", "base": "base", "accuracy": "grown"},
    **{"grown": "grown", "uniform": "uniform", "bits": "grown"},
}


def _stored(run: Run, entry: bitflips.Entry) -> str:
    """By which of those an entry is known, or its own name."""
    setting = run.params.setting(entry.model)
    if channels := getattr(setting, "channels", None):
        return str(channels)
    if getattr(setting, "clustering", 0):
        return "clustered"
    return f"{entry.bits} bits" if entry.model == run.roots[0].name else entry.name


def hydra(run: Run, _: Figures) -> pd.DataFrame:
    """HYDRA's table: PGD accuracy of dense, LWM and HYDRA networks beside ours."""
    ours = _trained(run)
    rows: list[dict[str, Any]] = []
    for (family, sparsity), (vgg, wide) in theirs.HYDRA.items() if ours else ():
        row: dict[str, Any] = {"family": family, "sparsity": sparsity}
        row |= {"robust_accuracy:VGG-16": vgg / 100, "robust_accuracy:WRN-28-4": wide / 100}
        if point := ours.get((family, sparsity)):
            row |= {"point": point.name} | seeds.ranged("clean_accuracy:ours", point.mean("clean"))
            row |= seeds.ranged("robust_accuracy:ours", point.mean("robust"))
        rows.append({"point": NOT_RUN} | row)
    return pd.DataFrame(rows)


def benchmark(run: Run, _: Figures) -> pd.DataFrame:
    """One row per method, theirs and ours: clean and robust accuracy at three sparsities."""
    ours = _trained(run)
    rows: list[dict[str, Any]] = []
    for method, values in theirs.BENCHMARK.items() if ours else ():
        row: dict[str, Any] = {"method": method, "whose": "published"}
        for sparsity, (clean, robust) in zip(theirs.BENCHMARK_SPARSITIES, values, strict=True):
            row[f"clean_accuracy:{sparsity:.0%}"] = clean / 100
            row[f"robust_accuracy:{sparsity:.0%}"] = robust / 100
        rows.append(row)
    for family in dict.fromkeys(family for family, _ in ours):
        row = {"method": family, "whose": "ours"}
        for sparsity in theirs.BENCHMARK_SPARSITIES:
            if point := ours.get((family, sparsity)):
                row[f"clean_accuracy:{sparsity:.0%}"] = point.mean("clean").value
                row[f"robust_accuracy:{sparsity:.0%}"] = point.mean("robust").value
        if len(row) > 2:
            rows.append(row)
    return pd.DataFrame(rows)


def _trained(run: Run) -> dict[tuple[str, float], seeds.Point]:
    """The first trained point of the first study of seeds, by family and sparsity."""
    found: dict[tuple[str, float], seeds.Point] = {}
    for name in list(run.studies_of("seeds"))[:1]:
        for point in seeds.points_of(run, name):
            if point.is_tuned and point.sparsity is not None:
                found.setdefault((point.family, point.sparsity), point)
    return found
