"""Bits under attack in the report: how many flips of stored bits break which network.

Rakin, He and Fan, Bit-Flip Attack (ICCV 2019). Counts are Hamming distances of stored weights, mean
and t interval over batches that the attacker may have; seeds that did not come down to chance are
told and never averaged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from advprune.core.params import BitFlipSettings
from advprune.evaluate.compare import ALPHA, holm
from advprune.evaluate.faults import (
    FlipComparison,
    Reached,
    Spread,
    accuracy_after,
    at_the_end,
    clean_accuracy,
    compare_flips,
    landing,
    over_flips,
    to_chance,
)
from advprune.report.drawing import COLOURS, SIZES, legend, panels, percent_axis, title
from advprune.report.finding import Finding, paragraphs
from advprune.report.study import Study
from advprune.report.text import NOTHING, count, listed, p_value, percent

NUMBERS = [
    *("entry", "model", "bits", "scale", "search", "clean"),
    *("flips", "low", "high", "deviation", "seeds", "censored", "tried"),
]
WIDE = 8  # how many times longer one curve is than another where x is drawn as a logarithm


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry of `bitflip` and its records. level: the accuracy that counts as guessing."""

    name: str
    setting: BitFlipSettings
    records: pd.DataFrame
    level: float

    @cached_property
    def reached(self) -> Reached:
        """Bits to chance under the untargeted attack."""
        return self.under("untargeted")

    @property
    def clean(self) -> float:
        """Accuracy as it is stored, before any flip."""
        return clean_accuracy(self.records)

    @property
    def stored_bits(self) -> int:
        """How many bits there are."""
        return int(self.records.stored_bits.iloc[0])

    @property
    def more(self) -> list[str]:
        """The other searches that were run."""
        return list(self.setting.variants)

    def under(self, variant: str) -> Reached:
        """Bits to chance under a variant."""
        return to_chance(self.records, self.level, variant)


def entries(study: Study) -> list[Entry]:
    """All entries in the order of params.yaml."""
    settings = study.params.bitflip
    return [Entry(n, settings[n], study.bitflips[n], study.chance) for n in settings]


def needed(reached: Reached, digits: int = 1) -> str:
    """`15.6 (13.2–18.0)`; `more than 140.2` where a seed did not come down."""
    found = reached.spread
    if found is None:
        return f"more than {reached.least:.{digits}f}" if reached.bits else NOTHING
    if found.low is None or found.high is None:
        return f"{found.mean:.{digits}f}"
    low = max(found.low, 0.0)  # a t interval may reach below what can be counted
    return f"{found.mean:.{digits}f} ({low:.{digits}f}–{found.high:.{digits}f})"


# --- tables --------------------------------------------------------------------------------------


def flip_table(study: Study) -> pd.DataFrame:
    """A row an entry: what is stored, how many flips it takes, and what random ones do."""
    return pd.DataFrame(_row(entry) for entry in entries(study))


def _row(entry: Entry) -> dict[str, str]:
    return {
        "entry": entry.name,
        "model": entry.setting.model,
        "bits": str(entry.setting.bits),
        "scale": entry.setting.scale,
        "stored bits": f"{entry.stored_bits:,}",
        "clean %": percent(entry.clean),
        **_counts(entry.reached),
        "after as many random flips %": _random(entry),
    }


def _counts(reached: Reached) -> dict[str, str]:
    found = reached.spread
    deviation = None if found is None else found.deviation
    return {
        "flips to chance": needed(reached),
        "s.d.": NOTHING if deviation is None else f"{deviation:.1f}",
        "seeds at chance": f"{len(reached.uncensored)} of {len(reached.bits)}",
    }


def _random(entry: Entry) -> str:
    """Mean and least accuracy after random flips, and their number where they were fewer."""
    flips, values = accuracy_after(entry.records, entry.reached.least)
    if not values:
        return NOTHING
    few = f", {flips} flips" if flips < entry.reached.least else ""
    return f"{percent(fmean(values))} (least {percent(min(values))}{few})"


def variant_table(study: Study) -> pd.DataFrame:
    """A row an entry and other search (margin, targeted); empty where none was asked for."""
    return pd.DataFrame(
        {
            "entry": entry.name,
            "search": variant,
            **_counts(entry.under(variant)),
            "accuracy in the end %": percent(fmean(at_the_end(entry.records, variant))),
            "untargeted": needed(entry.reached),
        }
        for entry in entries(study)
        for variant in entry.more
    )


def place_table(study: Study) -> pd.DataFrame:
    """A row an entry: into which layers and which bits the untargeted flips fell."""
    return pd.DataFrame(_places(entry) for entry in entries(study))


def _places(entry: Entry) -> dict[str, str]:
    table, bits = entry.records, entry.setting.bits
    flips = table[(table.variant == "untargeted") & (table.flip > 0)]
    shares = flips.layer.value_counts(normalize=True)  # the most frequent first
    top = [f"{layer} {percent(share, 0)}" for layer, share in shares.head(3).items()]
    return {
        "entry": entry.name,
        "flips": str(len(flips)),
        "layers hit": f"{len(shares)} of {int(table.layers.iloc[0])}",
        "most often, % of flips": ", ".join(top) or NOTHING,
        "highest bit %": percent(float((flips.bit == bits - 1).mean())) if len(flips) else NOTHING,
    }


def flip_curves(study: Study) -> pd.DataFrame:
    """Accuracy over flips in numbers; `model` names the line."""
    rows = [
        over_flips(entry.records, variant).assign(model=f"{entry.name} {variant}")
        for entry in entries(study)
        for variant in ("untargeted", *entry.more, "random")
    ]
    if not rows:
        return pd.DataFrame(columns=["model", "flips", "accuracy", "low", "high"])
    table = pd.concat(rows, ignore_index=True).rename(columns={"mean": "accuracy"})
    return table[["model", "flips", "accuracy", "low", "high"]].round(4)


def flip_numbers(study: Study) -> pd.DataFrame:
    """Every entry and search in numbers; counts are empty where a seed did not come down."""
    return pd.DataFrame(
        [
            _numbers(entry, variant)
            for entry in entries(study)
            for variant in ("untargeted", *entry.more)
        ],
        columns=NUMBERS,
    )


def _numbers(entry: Entry, variant: str) -> dict[str, Any]:
    reached, setting = entry.under(variant), entry.setting
    found = reached.spread or Spread(None, None, None, None)
    numbers = {"flips": found.mean, "low": found.low, "high": found.high}
    numbers |= {"deviation": found.deviation, "tried": reached.least, "clean": entry.clean}
    rounded = {key: None if v is None else round(v, 4) for key, v in numbers.items()}
    place = {"entry": entry.name, "model": setting.model, "search": variant}
    seeds = {"seeds": len(reached.bits), "censored": reached.censored}
    return place | {"bits": setting.bits, "scale": setting.scale} | rounded | seeds


# --- figures -------------------------------------------------------------------------------------


def accuracy_figure(study: Study) -> Figure | None:
    """Accuracy over flips, chosen and random: mean, and the range over seeds as a band."""
    found = entries(study)
    if not found:
        return None
    figure, axes = panels(2, 2.6)
    for ax, variant in zip(axes, ("untargeted", "random"), strict=True):
        curves = [over_flips(entry.records, variant) for entry in found]
        for place, (entry, curve) in enumerate(zip(found, curves, strict=True)):
            _curve(ax, curve, entry.name, COLOURS[place % len(COLOURS)])
        ax.axhline(100 * study.chance, color="black", lw=0.8, ls=":")
        ends = [int(curve.flips.max()) for curve in curves]
        if max(ends) > WIDE * max(min(ends), 1):
            ax.set_xscale("symlog", linthresh=max(min(ends), 1))
            ax.set_xlim(0, 1.05 * max(ends))
            ax.xaxis.set_major_formatter(ScalarFormatter())
        title(ax, "chosen flips" if variant == "untargeted" else "random flips")
        percent_axis(ax, "accuracy %")
    axes[-1].set_xlabel("flips", fontsize=SIZES["label"])
    legend(figure, axes[0])
    return figure


def _curve(ax: Axes, curve: pd.DataFrame, name: str, colour: str) -> None:
    ax.fill_between(curve.flips, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.1, lw=0)
    ax.plot(curve.flips, 100 * curve["mean"], color=colour, lw=1.4, label=name)


def places_figure(study: Study) -> Figure | None:
    """A panel an entry: the share of its flips in each layer (across) and each bit (up)."""
    found = entries(study)
    if not found:
        return None
    rows = -(-len(found) // 2)
    figure, axes = panels(rows, 1.75, columns=2)
    for ax, entry in zip(axes, found, strict=False):
        hits = landing(entry.records, entry.setting.bits)
        share = 100 * hits / max(hits.sum(), 1)
        picture = ax.imshow(share.T, origin="lower", aspect="auto", cmap="magma_r", vmin=0, vmax=50)
        title(ax, entry.name)
        ax.set_yticks(range(0, entry.setting.bits, 1 if entry.setting.bits < 5 else 2))
        ax.set_xticks(np.linspace(0, len(hits) - 1, min(len(hits), 5)).round().astype(int))
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    figure.supxlabel("layer, from the input on", fontsize=SIZES["label"])
    figure.supylabel("bit, 0 the least", fontsize=SIZES["label"])
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, pad=0.01, extend="max")
    bar.set_label("% of flips", fontsize=SIZES["label"])
    return figure


# --- the finding ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pair:
    """An entry beside the one that it is measured by."""

    entry: Entry
    reference: Entry
    test: FlipComparison

    @property
    def word(self) -> str:
        """more, fewer, or that no difference is shown; a network that guesses as it is stored has
        nothing left to lose, so nothing is concluded from it."""
        if any(one.clean <= one.level for one in (self.entry, self.reference)):
            return "nothing concluded, at chance before any flip"
        if not self.test.differs:
            return "no difference shown"
        return "more" if self.test.harder else "fewer"


def flips_finding(study: Study) -> Iterator[Finding]:
    """How many stored bits break which network, each entry against the first and its dense twin."""
    found = entries(study)
    if not found:
        return
    first, tests = found[0], pairs(study, found)
    text = paragraphs(
        [_first_words(study, first)],
        [words for entry in found for words in _search_words(entry)],
        [_pair_words(pair) for pair in tests],
        [_scope_words(tests)],
    )
    figures = {
        "flips": {one.name: one.reached.spread and one.reached.spread.mean for one in found},
        "p": {f"{one.entry.name}/{one.reference.name}": one.test.p for one in tests},
        "words": {f"{one.entry.name}/{one.reference.name}": one.word for one in tests},
    }
    names = "; ".join(_title_words(study, tests))
    start = f"How many stored bits break a network? {first.name}: {needed(first.reached)}"
    yield Finding(start + (f"; {names}" if names else ""), text, figures)


def pairs(study: Study, found: Sequence[Entry]) -> list[Pair]:
    """Each entry with the first one, and with the dense network of the first base that is stored
    alike, where that is another; p-values hold for all of them together (Holm)."""
    chosen = []
    for entry in found[1:]:
        references = [found[0], *alike(study, entry, found)]
        chosen += [(entry, one) for one in dict.fromkeys(references) if one is not entry]
    tests = [compare_flips(entry.reached, other.reached) for entry, other in chosen]
    corrected = holm([test.p for test in tests])
    return [
        Pair(*both, replace(test, p=p))
        for both, test, p in zip(chosen, tests, corrected, strict=True)
    ]


def alike(study: Study, entry: Entry, found: Sequence[Entry]) -> list[Entry]:
    """The entry of the dense network of the first base with the same bits and scale, if any."""
    wanted = ("dense", study.params.bases[0], entry.setting.bits, entry.setting.scale)
    return [
        one
        for one in found
        if (one.setting.of, one.setting.base, one.setting.bits, one.setting.scale) == wanted
    ][:1]


def _first_words(study: Study, first: Entry) -> str:
    settings, images = study.params.active().bitflip, len(study.clean_images)
    flips, values = accuracy_after(first.records, first.reached.least)
    random = f" {count(flips, 'random flip')} leave {percent(fmean(values))} %." if values else ""
    return (
        f"{_described(first)} is at chance (at most {percent(first.level)} % of n = {images} test "
        f"images) when {_needs(first.reached)} of its {first.stored_bits:,} stored bits are turned "
        f"over, chosen on {settings.images} training images without their labels.{random}"
    )


def _described(entry: Entry) -> str:
    setting = entry.setting
    return (
        f"{entry.name} ({setting.model}, {count(setting.bits, 'bit')} a weight; clean "
        f"{percent(entry.clean)} %)"
    )


def _needs(reached: Reached) -> str:
    """The count in a sentence, with the seeds that did not come down."""
    seeds = count(len(reached.bits), "batch", "batches")
    if not reached.censored:
        return f"{needed(reached)} (mean and 95 % interval over {seeds})"
    return f"{needed(reached)} (not reached on {reached.censored} of {seeds})"


def _search_words(entry: Entry) -> Iterator[str]:
    """What other searches needed."""
    if entry.more:
        counts = [f"{needed(entry.under(variant))} by {variant} flips" for variant in entry.more]
        yield f"On the same batches {entry.name} is at chance after {listed(counts)}."


def _pair_words(pair: Pair) -> str:
    needs = f"{_described(pair.entry)} needs {needed(pair.entry.reached)}"
    told = f"{pair.reference.name}: {pair.word} ({p_value(pair.test.p)})."
    if pair.test.ratio is None:
        return f"{needs}; against {told}"
    return f"{needs}, {pair.test.ratio:.2f} times as many as {told}"


def _scope_words(tests: Sequence[Pair]) -> str:
    return " ".join(
        [
            *_test_words(tests),
            "Each network was trained once, so a difference is one between these networks. Greedy "
            "search gives an upper bound: more bits may mean a search that fails rather than a "
            "network that stands.",
        ]
    )


def _test_words(tests: Sequence[Pair]) -> Iterator[str]:
    """What the p-values are, and whether so few batches could have shown anything."""
    if tests:
        yield (
            "p-values are of Gehan's exact rank test over batches, corrected for "
            f"{count(len(tests), 'comparison')} (Holm)."
        )
    sizes = [[len(one.reached.bits) for one in (pair.entry, pair.reference)] for pair in tests]
    if sizes and min(2 / comb(sum(pair), pair[0]) for pair in sizes) * len(tests) >= ALPHA:
        yield "So few batches cannot show a difference, however large; more seeds can."


def _title_words(study: Study, tests: Sequence[Pair]) -> Iterator[str]:
    """What pruning and clustering did, each against the dense network that is stored alike."""
    params = study.params
    for pair in tests:
        setting, reference = pair.entry.setting, pair.reference.setting
        stored = [(one.bits, one.scale) for one in (setting, reference)]
        if reference.of != "dense" or stored[0] != stored[1]:
            continue
        if setting.of in (*params.prune, *params.masks) and setting.base == reference.base:
            yield f"pruned ({pair.entry.name}): {pair.word}"
        elif setting.of == "dense" and params.recipes[setting.base].clustering:
            yield f"clustered ({pair.entry.name}): {pair.word}"
