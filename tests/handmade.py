"""Runs made by hand for the tests of the report's sections: every number has a known cause."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from planted import N, layer_table, rows, searched
from planted import planted as first
from workspace import RAW

from advprune.core.params import Params
from advprune.report.run import Model

EPS = 48 / 255
MODELS = {
    "E-standard": {"do": "prune", "of": "dense-standard", "by": "prune.E"},
    "clamp-standard": {"do": "prune", "of": "dense-standard", "by": "prune.clamp"},
    "random-standard": {"do": "prune", "of": "dense-standard", "by": "prune.random"},
    "GAP_layer-standard": {"do": "prune", "of": "dense-standard", "by": "prune.GAP_layer"},
    "int8-standard": {"do": "quantize", "of": "dense-standard", "by": "quantize.int8"},
    "RA_BNN-standard": {"do": "train", "of": "dense-standard", "by": "binary.RA_BNN"},
    "BNN_wide-standard": {"do": "train", "of": "RA_BNN-standard", "by": "binary.BNN_wide"},
    "seed1": {"do": "train", "of": "dense-standard", "by": "surrogates.seed1"},
}
BITS = {"int8-standard": 8, "RA_BNN-standard": 1, "BNN_wide-standard": 1}


def records(
    attack: str, right: np.ndarray, clean: int = N, eps: float = EPS, **columns: Any
) -> pd.DataFrame:
    """Records in which `right` survive and the first `clean` images are right without an attack."""
    return rows(attack, right, 10, eps, clean, **columns)


def model(
    name: str,
    params: Params,
    kept: Mapping[str, int | np.ndarray],
    transfers: Mapping[tuple[str, str], int | np.ndarray] | None = None,
    clean: int = N,
    **card: Any,
) -> Model:
    """A model of which so many first images (or just these) survive each attack; no attack of the
    settings is missing, and a search without gradients breaks nothing, so that it is reliable."""

    def hits(value: int | np.ndarray) -> np.ndarray:
        return first(value) if isinstance(value, int) else value

    names = dict.fromkeys([*params.active().suite.kept, *kept])
    tables = [records(attack, hits(kept.get(attack, N)), clean) for attack in names]
    tables += [
        records("curve_eps", hits(kept.get("field", N)) & first(N if eps <= EPS else 2), clean, eps)
        for eps in params.active().curves.eps
    ]
    tables.append(
        searched(N).assign(clean_pred=tables[0].clean_pred, adv_pred=tables[0].clean_pred)
    )
    tables.append(records("curve_steps", hits(kept.get("field", N)), clean))
    entry = params.models.get(name)
    facts = {"bits": BITS.get(name, 32), "sparsity": 0.0, "prune_ratio": 0.0, "parameters": 1000}
    made = params.setting(name) if entry or name in params.dense() else None
    facts |= {"setting": made, "twin_agreement": 1.0, "nonzero": 1000, "macs": 10}
    return Model(
        name=name,
        family=params.family(name),
        parent=entry.of if entry else name,
        root=params.root(name),
        do=entry.do if entry else "train",
        card=facts | {"file_bytes": 4000, "stored_bits": 32000, "inert": 0.0} | card,
        records=pd.concat(tables, ignore_index=True),
        layers=layer_table(),
        transfers={
            (source, attack): records(attack, hits(value), clean)
            for (source, attack), value in (transfers or {}).items()
        },
    )


def settings(studies: Mapping[str, Any] | None = None, **changes: Any) -> Params:
    """The repository's settings with few models and these studies."""
    raw = copy.deepcopy(RAW)
    del raw["profiles"]["digits"]["protocol"]  # its own budgets: tests have theirs
    recipes = {"standard": {"method": "standard"}, "robust": {"method": "pgd"}}
    protocol = {"eps": [0, "eps/2", "eps"], "iterative": {"step": "eps/4", "steps": 3}}
    own = {"recipes": recipes, "protocol": protocol, "models": MODELS, "studies": studies or {}}
    return Params.model_validate(raw | own | {"profile": "digits"} | changes)
