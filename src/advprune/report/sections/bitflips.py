"""Bit flips: how many stored bits an attacker must flip until a network guesses.

Rakin, He and Fan, Bit-Flip Attack (ICCV 2019). Counts are Hamming distances of stored weights, mean
and t interval over batches that the attacker may have; seeds that did not reach chance are told and
never averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from statistics import fmean
from typing import Any

import pandas as pd

from advprune.evaluate.compare import ALPHA, holm
from advprune.evaluate.faults import (
    FlipComparison,
    Reached,
    accuracy_after,
    at_the_end,
    clean_accuracy,
    compare_flips,
    landing,
    over_flips,
    to_chance,
)
from advprune.report.chart import Chart
from advprune.report.formats import percent
from advprune.report.run import Run
from advprune.report.section import Part, section


@dataclass(frozen=True, eq=False)
class Entry:
    """A study of bit flips and its records. level: the accuracy that counts as guessing."""

    name: str
    model: str
    bits: int
    scale: str
    variants: tuple[str, ...]
    records: pd.DataFrame
    level: float

    def under(self, variant: str = "untargeted") -> Reached:
        """Bits to chance under a variant."""
        return to_chance(self.records, self.level, variant)

    @property
    def clean(self) -> float:
        """Accuracy as stored, before any flip."""
        return clean_accuracy(self.records)


@section("Bit flips", order=80)
def bitflips(run: Run) -> list[Part]:
    """Flips to chance, each entry against the first and the dense network stored alike."""
    found = entries(run)
    if not found:
        return []
    flips = run.profile.flips
    text = (
        f"Stored bits an attacker must flip until accuracy on the test images (n = "
        f"{len(run.clean_images)}) is at most {percent(run.chance)} %, found by progressive bit "
        f"search on {flips.images} training images without labels; mean and 95 % interval over "
        f"{flips.seeds} batches. Where a batch did not reach chance, the count is a lower bound "
        "(at least). Random: after as many random flips."
    )
    chart = Chart(
        "bitflip",
        "line",
        curves(found),
        x="flips",
        y="accuracy",
        series="entry",
        low="accuracy_low",
        high="accuracy_high",
        panel="search",
        reference=run.chance,
    )
    parts = [Part("Flips to chance", text, table_of(found), chart)]
    if len(table := pair_table(found, run.roots[0].name)):
        words = (
            "p: Gehan's exact rank test over batches, corrected for all comparisons (Holm). Each "
            "network was trained once, and greedy search gives an upper bound: more bits may mean "
            f"a search that fails.{_power(pairs(found, run.roots[0].name))}"
        )
        parts.append(Part("Flips to chance, compared", words, table))
    if len(table := searches(found)):
        words = (
            "Margin: a loss that ignores images that are wrong already. Targeted: all images into "
            f"class {flips.target}. On the same batches."
        )
        parts.append(Part("Other searches", words, table, folded=True))
    chart = Chart("bitflip-places", "heatmap", places(found), x="layer", y="entry", value="share")
    words = "Share of an entry's untargeted flips, all batches together."
    return [*parts, Part("Where the flips land", words, hits(found), chart, folded=True)]


def entries(run: Run) -> list[Entry]:
    """All studies of bit flips in params order."""
    found = []
    for name, study in run.studies_of("bitflip").items():
        setting = study.settings
        variants = tuple(setting.get("variants", ()))
        scale, bits = setting.get("scale", "layer"), int(setting.get("bits", 8))
        records = run.studies[name]
        found.append(Entry(name, study.of, bits, scale, variants, records, run.chance))
    return found


def counts(reached: Reached) -> dict[str, Any]:
    """Flips to chance with interval; `at_least` in their place where a batch did not reach it."""
    spread = reached.spread
    known = spread.mean if spread else None
    low = None if spread is None or spread.low is None else max(spread.low, 0.0)
    return {
        "flips_to_chance": known,
        "flips_to_chance_low": low,
        "flips_to_chance_high": spread.high if spread else None,
        "at_least_flips": reached.least if reached.bits and spread is None else None,
        "seeds_at_chance": f"{len(reached.uncensored)} of {len(reached.bits)}",
    }


def table_of(found: Sequence[Entry]) -> pd.DataFrame:
    """One row per entry: what is stored, flips to chance, accuracy after as many random flips."""
    rows = []
    for entry in found:
        flips, values = accuracy_after(entry.records, entry.under().least)
        row: dict[str, Any] = {"entry": entry.name, "model": entry.model, "bits": entry.bits}
        row |= {"scale": entry.scale, "stored_bits": int(entry.records.stored_bits.iloc[0])}
        row |= {"clean_accuracy": entry.clean} | counts(entry.under())
        row |= {"random_flips": flips, "accuracy:random": fmean(values) if values else None}
        rows.append(row | {"accuracy:random, least": min(values) if values else None})
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Pair:
    """An entry beside the one that it is measured by."""

    entry: Entry
    reference: Entry
    test: FlipComparison

    @property
    def outcome(self) -> str:
        """more, fewer, not significant, or at chance before any flip."""
        if any(one.clean <= one.level for one in (self.entry, self.reference)):
            return "at chance"
        if not self.test.differs:
            return "not significant"
        return "more" if self.test.harder else "fewer"


def pairs(found: Sequence[Entry], root: str) -> list[Pair]:
    """Each entry with the first one, and with the network `root` where it is stored alike; p-values
    hold for all of them together (Holm)."""
    chosen = []
    for entry in found[1:]:
        stored = root, entry.bits, entry.scale
        alike = [one for one in found if (one.model, one.bits, one.scale) == stored][:1]
        references = dict.fromkeys([found[0], *alike])
        chosen += [(entry, one) for one in references if one is not entry]
    tests = [compare_flips(entry.under(), other.under()) for entry, other in chosen]
    corrected = holm([test.p for test in tests])
    return [
        Pair(*both, replace(test, p=p))
        for both, test, p in zip(chosen, tests, corrected, strict=True)
    ]


def pair_table(found: Sequence[Entry], root: str) -> pd.DataFrame:
    """One row per comparison. times: flips of the entry over those of the reference."""
    return pd.DataFrame(
        {
            "entry": pair.entry.name,
            "model": pair.entry.model,
            "reference": pair.reference.name,
            **{k: v for k, v in counts(pair.entry.under()).items() if k != "seeds_at_chance"},
            "flips_to_chance:reference": counts(pair.reference.under())["flips_to_chance"],
            "times": pair.test.ratio,
            "p": pair.test.p,
            "outcome": pair.outcome,
        }
        for pair in pairs(found, root)
    )


def _power(tests: Sequence[Pair]) -> str:
    """A sentence where so few batches could not have shown anything."""
    sizes = [[len(one.under().bits) for one in (p.entry, p.reference)] for p in tests]
    least = min((2 / comb(sum(pair), pair[0]) for pair in sizes), default=0.0)
    return "" if least * len(tests) < ALPHA else " With so few batches no difference can be shown."


def searches(found: Sequence[Entry]) -> pd.DataFrame:
    """One row per entry and other search (margin, targeted)."""
    return pd.DataFrame(
        {"entry": entry.name, "search": variant}
        | counts(entry.under(variant))
        | {"end_accuracy": fmean(at_the_end(entry.records, variant))}
        | {"flips_to_chance:untargeted": counts(entry.under())["flips_to_chance"]}
        for entry in found
        for variant in entry.variants
    )


def curves(found: Sequence[Entry]) -> pd.DataFrame:
    """Accuracy over chosen and random flips: mean and range over batches."""
    names = {"mean": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    tables = [
        over_flips(entry.records, variant)
        .rename(columns=names)
        .assign(entry=entry.name, search=words)
        for variant, words in (("untargeted", "chosen flips"), ("random", "random flips"))
        for entry in found
    ]
    return pd.concat(tables, ignore_index=True)


def untargeted(entry: Entry) -> pd.DataFrame:
    """The untargeted flips of all batches."""
    table = entry.records
    return table[(table.variant == "untargeted") & (table.flip > 0)]


def hits(found: Sequence[Entry]) -> pd.DataFrame:
    """One row per entry: the three layers hit most often, and the share of the highest bit."""
    rows = []
    for entry in found:
        flips = untargeted(entry)
        shares = flips.layer.value_counts(normalize=True)
        top = [f"{layer} {percent(share)} %" for layer, share in shares.head(3).items()]
        highest = float((flips.bit == entry.bits - 1).mean()) if len(flips) else None
        row: dict[str, Any] = {"entry": entry.name, "flips": len(flips), "layers_hit": len(shares)}
        row |= {"layers": int(entry.records.layers.iloc[0]), "most_often": ", ".join(top)}
        rows.append(row | {"highest_bit_share": highest})
    return pd.DataFrame(rows)


def places(found: Sequence[Entry]) -> pd.DataFrame:
    """The share of each entry's flips in each layer that was hit by any, in order of depth."""
    depths: dict[str, int] = {}
    for entry in found:
        flips = untargeted(entry)
        depths |= dict(zip(flips.layer, flips.depth, strict=True))
    rows = []
    for entry in found:
        by_layer = landing(entry.records, entry.bits).sum(axis=1)  # [layers]
        known = dict(untargeted(entry)[["layer", "depth"]].drop_duplicates().to_numpy())
        rows += [
            {"entry": entry.name, "layer": layer}
            | {"share": float(by_layer[known[layer]] / by_layer.sum()) if layer in known else 0.0}
            for layer in sorted(depths, key=lambda name: (depths[name], name))
        ]
    return pd.DataFrame(rows)
