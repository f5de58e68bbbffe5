"""Where in the network the attack acts: how far it moves each layer's feature maps."""

from math import ceil
from statistics import median
from typing import Any

import pandas as pd

from advprune.report.chart import Chart
from advprune.report.formats import budget
from advprune.report.run import Run
from advprune.report.section import Part, section

MEASURES = {
    "relative_difference": "relative change",
    "distance": "distance of distributions",
    "sigma": "sigma attacked / clean",
}


@section("Where the attack acts", order=90)
def layers(run: Run) -> list[Part]:
    """Ranks of the first and the last layer, spread of clamped maps, curves over depth."""
    known = [model for model in run.models if len(model.layers)]
    if not known:
        return []
    text = (
        "Claim (nn-prune): PGD acts on the input layer and on the layer before the classifier. "
        "Rank 1: the attack moves this layer most. A layer stands out if it is in the top tenth "
        f"by both measures ({run.main}, eps {budget(run.main_attack.eps)}, n = {run.n})."
    )
    ranks = pd.DataFrame({"model": model.name} | standing(model.layers) for model in known)
    parts = [Part("First and last layer", text, ranks)]
    if len(table := clamped(run)):
        words = (
            "Standard deviation of feature maps under attack over that on clean images, in the "
            "last residual stage: models with clamped maps beside their dense network."
        )
        parts.append(Part("Spread of feature maps under clamp", words, table))
    words = (
        "Relative change: L2 norm of the change over that of the clean maps. Distance: "
        "1-Wasserstein between the distributions of values, in clean standard deviations. Sigma: "
        "standard deviation under attack over clean."
    )
    for group, models in run.groups.items():
        if len(rows := over_depth([(m.family, m.layers) for m in models if len(m.layers)])):
            axes = ("depth", "number", "family")
            look: dict[str, Any] = {"x_label": "layer, from the input on", "y_label": " "}
            chart = Chart(
                f"layers-{group}", "line", rows, *axes, panel="measure", hover=("layer",), **look
            )
            parts.append(Part(f"Layers, {group}", words, None, chart, folded=True))
    return parts


def standing(table: pd.DataFrame) -> dict[str, Any]:
    """How the input layer and the one before the classifier rank, 1 is the largest change.

    The input layer is the first one behind the normalization; the last before the classifier is
    what the classifier reads. stands_out: yes by both measures for both layers, no by none.
    """
    table = table.sort_values("depth", ignore_index=True)
    first, last = table[table.kind != "Normalize"].layer.iloc[0], table.layer.iloc[-2]
    found: dict[str, Any] = {"input_layer": first, "last_layer": last, "layers": len(table)}
    ranks: list[int] = []
    for measure, word in list(MEASURES.items())[:2]:
        rank = table[measure].rank(method="min", ascending=False).astype(int)
        for layer, side in ((first, "input"), (last, "last")):
            ranks.append(int(rank[table.layer == layer].iloc[0]))
            found[f"rank:{side}, {word}"] = ranks[-1]
        found[f"most:{word}"] = table.layer.iloc[int(rank.argmin())]
    out = [rank <= ceil(len(table) / 10) for rank in ranks]
    return found | {"stands_out": "yes" if all(out) else "partly" if any(out) else "no"}


def clamped(run: Run) -> pd.DataFrame:
    """Two rows per model with clamped feature maps: its own and its dense network's."""
    chosen = [model for model in run.compressed if model.family == "clamp" and len(model.layers)]
    rows = []
    for model in chosen:
        for one in (model, run.dense_of(model)):
            stage, ratios = spread(one.layers)
            if not ratios:
                continue
            row = {"model": one.name, "stage": stage, "layers": len(ratios)}
            row |= {"layers_that_grow": sum(ratio > 1 for ratio in ratios)}
            row |= {"sigma_growth": median(ratios), "sigma_growth_low": min(ratios)}
            rows.append(row | {"sigma_growth_high": max(ratios)})
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame) -> tuple[str, list[float]]:
    """The last residual stage, and sigma under attack over clean sigma of each of its layers."""
    inside = table[table.layer.str.match(r"layer\d+\.")]
    if inside.empty:
        return "", []
    stage = inside.sort_values("depth").layer.iloc[-1].partition(".")[0]
    chosen = inside[inside.layer.str.startswith(f"{stage}.")]
    return stage, [float(ratio) for ratio in _sigma(chosen)]


def over_depth(tables: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """The measures of each model over depth; layers that the first model lacks are left out."""
    rows: list[pd.DataFrame] = []
    places: dict[str, int] = {}
    for family, table in tables:
        table = table.sort_values("depth", ignore_index=True)
        places = places or {name: place for place, name in enumerate(table.layer)}
        # A wrapped layer (`conv1.0` of a quantized model) takes the place of its parent.
        known = [places.get(name, places.get(name.rpartition(".")[0])) for name in table.layer]
        table = table.assign(depth=pd.Series(known), sigma=_sigma(table)).dropna(subset="depth")
        for measure, words in MEASURES.items():
            columns = {"depth": table.depth, "layer": table.layer, "number": table[measure]}
            rows.append(pd.DataFrame(columns).assign(family=family, measure=words))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def _sigma(table: pd.DataFrame) -> "pd.Series[float]":
    return table.adv_sigma / table.clean_sigma.clip(lower=1e-12)
