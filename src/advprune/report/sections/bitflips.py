"""Bit flips: how many stored bits an attacker must flip until a network is at chance.

Rakin, He and Fan, Bit-Flip Attack (ICCV 2019). Counts are Hamming distances of stored weights, mean
and t interval over batches that the attacker may have. If a batch did not reach chance, a lower
bound is given instead of the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import pandas as pd

from advprune.evaluate import flips
from advprune.evaluate.compare import AT_CHANCE
from advprune.report.formats import percent, with_interval
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.tables import Row, explained, tested

UNTARGETED, RANDOM = "untargeted", "random"


@dataclass(frozen=True, eq=False)
class Entry(flips.Stored):
    """A study of bit flips and its records. level: the accuracy that counts as chance."""

    variants: tuple[str, ...]
    records: pd.DataFrame
    level: float

    def under(self, variant: str = UNTARGETED) -> flips.Reached:
        """Bits to chance under a variant of the search."""
        return flips.to_chance(self.records, self.level, variant)


@section("Bit flips", order=80)
def bitflips(run: Run) -> Parts:
    """Flips to chance, each entry against the first and the dense network stored alike."""
    found = entries(run)
    if not found:
        return
    how, axes = run.profile.flips, ("flips", "accuracy", "study", "search")
    yield Part(
        "Flips to chance",
        f"Stored bits an attacker must flip until accuracy on n = {len(run.clean_images)} test "
        f"images is at most {percent(run.chance)} %, by progressive bit search on {how.images} "
        f"training images without labels: mean and 95 % interval over {how.seeds} batches, or a "
        "lower bound where a batch did not reach chance. Search “margin” gives images that "
        "are already misclassified a hundredth of the weight, “targeted” aims at class "
        f"{how.target}.",
        table_of(found),
        Chart("bitflip", "line", curves(found), *axes, interval=True, reference=run.chance),
    )
    yield Part(
        "Flips to chance, compared",
        f"Gehan's exact rank test over batches. {explained('all comparisons')} A higher count may "
        "only mean that the greedy search failed.",
        pair_table(flips.pairs_of(found, run.roots[0].name)),
    )


def entries(run: Run) -> list[Entry]:
    """All studies of bit flips in params order."""
    found = []
    for name, study in run.studies_of("bitflip").items():
        setting = study.settings
        stored = int(setting.get("bits", 8)), setting.get("scale", "layer")
        variants = tuple(setting.get("variants", ()))
        found.append(Entry(name, study.of, *stored, variants, run.studies[name], run.chance))
    return found


def counts(reached: flips.Reached) -> Row:
    """Flips to chance with interval; `at_least_flips` instead where a batch did not reach it."""
    if reached.mean is None:
        least = reached.least if reached.bits else None
        return with_interval("flips_to_chance", None, None, None) | {"at_least_flips": least}
    low, high = reached.interval
    low = None if low is None else max(low, 0.0)  # t may reach below what can be counted
    found = with_interval("flips_to_chance", reached.mean.value, low, high)
    return found | {"at_least_flips": None}


def table_of(found: Sequence[Entry]) -> pd.DataFrame:
    """One row per entry and search: flips to chance, accuracy in the end and after random flips."""
    rows = []
    for entry in found:
        records = entry.records
        stored = {"study": entry.name, "model": entry.model, "bits": entry.bits}
        stored |= {"scale": entry.scale, "stored_bits": int(records.stored_bits.iloc[0])}
        clean = flips.start_accuracy(records)
        for variant in (UNTARGETED, *entry.variants):
            reached = entry.under(variant)
            row = stored | {"search": variant, "clean_accuracy": clean} | counts(reached)
            row["at_chance"] = f"{len(reached.uncensored)} of {len(reached.bits)}"
            row["end_accuracy"] = fmean(flips.at_the_end(records, variant))
            if variant == UNTARGETED:
                values = flips.accuracy_after(records, reached.least)
                row["accuracy:random flips"] = fmean(values) if values else None
                row["accuracy:random flips, least"] = min(values, default=None)
                top = records[(records.variant == UNTARGETED) & (records.flip > 0)]
                row["highest_bit_share"] = float((top.bit == entry.bits - 1).mean())
                row["most_hit_layer"] = top.layer.mode().iloc[0] if len(top) else None
            rows.append(row)
    return pd.DataFrame(rows)


def pair_table(pairs: Sequence[tuple[Entry, Entry]]) -> pd.DataFrame:
    """One row per pair; all are corrected together. times: the ratio of the means."""
    rows = []
    for entry, other in pairs:
        own, theirs = entry.under(), other.under()
        test = flips.compare_flips(own, theirs)
        if any(flips.start_accuracy(one.records) <= one.level for one in (entry, other)):
            test = replace(test, void=AT_CHANCE)
        row = {"study": entry.name, "model": entry.model, "reference": other.name} | counts(own)
        row["flips_to_chance:reference"] = counts(theirs)["flips_to_chance"]
        rows.append((row | {"times": test.ratio}, test))
    return pd.DataFrame(tested(rows))


def curves(found: Sequence[Entry]) -> pd.DataFrame:
    """Accuracy over chosen and random flips: mean and range over batches."""
    names = {"mean": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    tables = [
        flips.over_flips(entry.records, variant).assign(study=entry.name, search=words)
        for variant, words in ((UNTARGETED, "chosen flips"), (RANDOM, "random flips"))
        for entry in found
    ]
    return pd.concat(tables, ignore_index=True).rename(columns=names)
