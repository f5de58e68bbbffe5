"""Findings on where inside the network an attack acts."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from statistics import median

import pandas as pd

from advprune.report.finding import Finding
from advprune.report.study import Study
from advprune.report.text import (
    count,
    listed,
)

MEASURES = {
    "relative_difference": "relative difference |adv - clean| / |clean|",
    "distance": "distance between the distributions",
}


@dataclass(frozen=True)
class Standing:
    """How the input layer and the one before the classifier rank among all layers."""

    input: str
    last: str
    layers: int
    ranks: dict[str, tuple[int, int]]  # measure -> ranks of input and last, 1 is largest
    top: dict[str, list[str]]

    @property
    def cut(self) -> int:
        """A layer stands out by rank up to this: the top tenth."""
        return ceil(self.layers / 10)

    @property
    def verdict(self) -> str:
        """yes: both stand out by both measures; partly: one by one of them; no: none."""
        out = [rank <= self.cut for pair in self.ranks.values() for rank in pair]
        return "yes" if all(out) else "partly" if any(out) else "no"


def standing(layers: pd.DataFrame, top: int = 5) -> Standing:
    """Rank the layers of one model by how far the attack moves them.

    The input layer is the first one behind the normalization; the last layer before the
    classifier is what the classifier reads.
    """
    table = layers.sort_values("depth", ignore_index=True)
    first = table[table.kind != "Normalize"].layer.iloc[0]
    last = table.layer.iloc[-2]
    ranks, tops = {}, {}
    for measure in MEASURES:
        rank = table[measure].rank(method="min", ascending=False).astype(int)
        place = dict(zip(table.layer, rank, strict=True))
        ranks[measure] = (int(place[first]), int(place[last]))
        tops[measure] = table.layer.loc[rank.sort_values(kind="stable").index[:top]].tolist()
    return Standing(first, last, len(table), ranks, tops)


def where_it_acts(study: Study, base: str) -> Iterator[Finding]:
    """Does the attack act on the input layer and on the one before the classifier?"""
    found = {model.family: standing(model.layers) for model in study.of(base)}
    dense = found["dense"]
    alike = [name for name, one in found.items() if one.verdict == dense.verdict]
    text = [
        "The claim is that PGD acts on the input layer and on the layer before the classifier.",
        *(_measure_words(dense, measure) for measure in MEASURES),
        *_stage_words(dense),
        f"With the top {dense.cut} of {dense.layers} layers counted as standing out, the answer "
        f"is: {dense.verdict}. It is the same for {len(alike)} of {count(len(found), 'model')}.",
        f"(n = {len(study.dense(base).attack(study.main))} images, attack {study.main}.)",
    ]
    yield Finding(
        "Does PGD act on the input layer and the one before the classifier? "
        + dense.verdict.capitalize(),
        " ".join(text),
        {"verdict": dense.verdict, "ranks": dense.ranks, "layers": dense.layers, "top": dense.top},
    )


def _measure_words(found: Standing, measure: str) -> str:
    first, last = found.ranks[measure]
    return (
        f"By {MEASURES[measure]}, {found.input} ranks {first} and {found.last} ranks {last} of "
        f"{found.layers}; the largest are {listed(found.top[measure])}."
    )


def _stage_words(found: Standing) -> Iterator[str]:
    """Where the largest differences lie, by stage of the network."""
    top = [name.partition(".")[0] for names in found.top.values() for name in names]
    stage = max(dict.fromkeys(top), key=top.count)
    if any(name.startswith(f"{stage}.") for names in found.top.values() for name in names):
        yield f"Of these {len(top)} places, {top.count(stage)} are in {stage}."


def clamped_spread(study: Study, base: str) -> Iterator[Finding]:
    """Does the spread of the clamped model's last stage grow under attack?"""
    clamped = [model for model in study.of(base) if model.family == "clamp"]
    if not clamped:
        return
    stage, ratios = _spread(clamped[0].layers)
    _, before = _spread(study.dense(base).layers)
    if not ratios or not before:
        return
    grown, dense_grown = sum(r > 1 for r in ratios), sum(r > 1 for r in before)
    verdict = "yes" if grown == len(ratios) else "no" if grown == 0 else "partly"
    text = (
        f"Under {study.main}, sigma of the feature maps is larger than on clean images in {grown} "
        f"of {count(len(ratios), 'layer')} of {stage} for the clamped model "
        f"(median ratio {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}) and in "
        f"{dense_grown} of {len(before)} for the dense one (median {median(before):.2f}). "
        f"So sigma of the last stage {_spread_verb(median(ratios))} under attack when maps are "
        f"clamped, and {_spread_verb(median(before))} when they are not "
        f"(n = {len(clamped[0].attack(study.main))} images)."
    )
    title = f"Does the clamped model's sigma grow in its last stage? {verdict.capitalize()}"
    figures = {"verdict": verdict, "clamp": median(ratios), "dense": median(before), "stage": stage}
    yield Finding(title, text, figures)


def _spread(layers: pd.DataFrame) -> tuple[str, list[float]]:
    """The last residual stage, and sigma under attack over clean sigma of each of its layers."""
    inside = layers[layers.layer.str.match(r"layer\d+\.")]
    if inside.empty:
        return "", []
    stage = inside.sort_values("depth").layer.iloc[-1].partition(".")[0]
    chosen = inside[inside.layer.str.startswith(f"{stage}.")]
    return stage, [float(r) for r in chosen.adv_sigma / chosen.clean_sigma.clip(lower=1e-12)]


def _spread_verb(ratio: float) -> str:
    return "grows" if ratio > 1.02 else "shrinks" if ratio < 0.98 else "stays as it is"
