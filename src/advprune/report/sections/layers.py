"""Where in the network the attack acts: how far it moves each layer's feature maps."""

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
        "Claim (nn-prune): the attack makes small changes to many neurons behind the input and "
        "abnormally large values before the classifier. Changed: share of units that move by more "
        "than a tenth of the layer's standard deviation; change: L2 norm of the change over that "
        "of the maps; growth: maximum and 99.9th percentile of |value| over the clean ones. "
        "Noise, the control, changes each image by the same amounts at random places and signs. "
        "Small and many: over half of the units change, and by less than in the median layer. "
        "Abnormally large: the percentile grows more than under noise and more than in nine of ten "
        f"layers ({run.main}, eps {budget(run.main_attack.eps)}, n = {run.n})."
    )
    rows = pd.DataFrame({"model": model.name} | ends(model.layers) for model in known)
    parts = [Part("First and last layer", text, rows)]
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


def ends(table: pd.DataFrame) -> dict[str, Any]:
    """How the attack and noise change the input layer and the one before the classifier.

    The input layer is the first one behind the normalization; the last before the classifier is
    what the classifier reads.
    """
    table = table.sort_values("depth", ignore_index=True)
    growth = table.adv_top / table.clean_top.clip(lower=1e-12)
    first, last = table.index[table.kind != "Normalize"][0], table.index[-2]
    inside, outside = table.loc[first], table.loc[last]
    found: dict[str, Any] = {"input_layer": inside.layer}
    for side, change in (("adv", "relative_difference"), ("noise", "noise_relative")):
        word = {"adv": "attack", "noise": "noise"}[side]
        found[f"changed_share:{word}"] = float(inside[f"{side}_changed"])
        found[f"change_ratio:{word}"] = float(inside[change])
    many = inside.adv_changed > 0.5
    small = inside.relative_difference < table.relative_difference.median()
    found |= {"small_and_many": "yes" if many and small else "no", "last_layer": outside.layer}
    for side, word in (("adv", "attack"), ("noise", "noise")):
        for part, name in (("max", "maximum"), ("top", "percentile")):
            ratio = outside[f"{side}_{part}"] / max(outside[f"clean_{part}"], 1e-12)
            found[f"{name}_growth:{word}"] = float(ratio)
    above = growth[last] > growth.quantile(0.9, interpolation="lower")
    larger = found["percentile_growth:attack"] > max(found["percentile_growth:noise"], 1.0)
    return found | {"abnormally_large": "yes" if above and larger else "no"}


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
