"""Where in the network the attack acts: how far it moves each layer's feature maps."""

import pandas as pd

from advprune.evaluate.acting import LOOKED_AT, ends, sigma_growth
from advprune.report.section import Chart, Model, Part, Parts, Run, section

DEPTH = "layer, from the input on"
MEASURES = {
    "relative_difference": "relative change",
    "distance": "distance of distributions",
    "sigma": "sigma attacked / clean",
    "rise": "mean attacked − clean, in clean sigma",
}


@section("Where the attack acts", order=90)
def layers(run: Run) -> Parts:
    """First and last layer of each model, and curves over depth."""
    known = [model for model in run.models if len(model.layers)]
    if not known:
        return
    yield Part(
        "First and last layer",
        f"Under {run.main_words} and under noise of its size, n = {min(run.n, LOOKED_AT)}. "
        "Changed: by more than a tenth of the layer's standard deviation. Change ratio: L2 norm of "
        "the change over that of the maps. Growth: of the largest absolute value and of the 99.9th "
        "percentile. In the figures, distances are 1-Wasserstein, in clean standard deviations.",
        pd.DataFrame({"model": model.name} | ends(model.layers) for model in known),
    )
    for group, models in run.groups.items():
        name, rows = f"layers-{group}", over_depth(models)
        axes = ("depth", "number", "family", "measure")
        chart = Chart(name, "line", rows, *axes, hover=("layer",), x_label=DEPTH, y_label=" ")
        yield Part(f"Layers, {group}", chart=chart, folded=True)


def over_depth(models: list[Model]) -> pd.DataFrame:
    """The measures of each model over depth; layers that the first model lacks are left out."""
    places: dict[str, int] = {}
    rows: list[pd.DataFrame] = []
    for model in (model for model in models if len(model.layers)):
        table = model.layers.sort_values("depth", ignore_index=True)
        places = places or {name: place for place, name in enumerate(table.layer)}
        # A wrapped layer (`conv1.0` of a quantized model) takes the place of its parent.
        depth = [places.get(name, places.get(name.rpartition(".")[0])) for name in table.layer]
        rise = (table.adv_mean - table.clean_mean) / table.clean_sigma.clip(lower=1e-12)
        table = table.assign(depth=pd.Series(depth), sigma=sigma_growth(table), rise=rise)
        rows.append(table.assign(family=model.family).dropna(subset="depth"))
    if not rows:
        return pd.DataFrame()
    keys = ["depth", "layer", "family"]
    whole = pd.concat(rows, ignore_index=True)[[*keys, *MEASURES]].rename(columns=MEASURES)
    return whole.melt(keys, var_name="measure", value_name="number")
