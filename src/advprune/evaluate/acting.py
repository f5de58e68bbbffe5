"""Where in a network the attack acts: pure functions of the records of its layers."""

from typing import Any

import pandas as pd

LOOKED_AT = 2000  # images at most, the first ones: these figures need no more
SIDES = {"adv": "attack", "noise": "noise"}


def ends(table: pd.DataFrame) -> dict[str, Any]:
    """How the attack and noise change the input layer and the one before the classifier. The
    input layer is the first behind the normalization."""
    table = table.sort_values("depth", ignore_index=True)
    inside, outside = table[table.kind != "Normalize"].iloc[0], table.iloc[-2]
    found: dict[str, Any] = {"input_layer": inside.layer}
    for side, word in SIDES.items():
        change = inside["relative_difference" if side == "adv" else "noise_relative"]
        found |= {f"changed_share:{word}": float(inside[f"{side}_changed"])}
        found |= {f"change_ratio:{word}": float(change)}
    found |= {"last_layer": outside.layer}
    for side, word in SIDES.items():
        for part, name in (("max", "maximum"), ("top", "percentile")):
            ratio = outside[f"{side}_{part}"] / max(outside[f"clean_{part}"], 1e-12)
            found[f"{name}_growth:{word}"] = float(ratio)
    return found


def last_stage(table: pd.DataFrame) -> pd.DataFrame:
    """The layers of the last residual stage; empty where there is none."""
    inside = table[table.layer.str.match(r"layer\d+\.")].sort_values("depth")
    stages = inside.layer.str.split(".").str[0]
    return inside[stages == stages.iloc[-1]] if len(inside) else inside


def sigma_growth(table: pd.DataFrame) -> "pd.Series[float]":
    """Standard deviation of each layer's values under attack over that on clean images."""
    return table.adv_sigma / table.clean_sigma.clip(lower=1e-12)
