"""Planted runs for the tests of the report: records in which every number has a known cause."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from workspace import RAW

from advprune.core.attack_settings import KINDS
from advprune.core.params import Params
from advprune.core.settings import parse
from advprune.data import Split, save_split
from advprune.report.run import Model, Run, Transfers

N = 40
ATTACKS = {"main": (12 / 255, 10), "short": (1 / 255, 10), "long": (1 / 255, 40)}
EXCHANGED = ("main", "short")


def planted(first: int, of: int = N) -> np.ndarray:
    """Right on the first so many images."""
    return np.arange(of) < first


def rows(
    attack: str,
    right: np.ndarray,
    steps: int = 10,
    eps: float = 48 / 255,
    clean: int = N,
    **columns: Any,
) -> pd.DataFrame:
    """Records in which `right` says what survives and the first `clean` images start right."""
    label, n = np.arange(len(right)) % 4, len(right)
    sides = {"clean": planted(clean, n), "adv": right}
    table = {"index": np.arange(n), "label": label, "attack": attack, "method": "pgd", "seed": 0}
    table |= {"norm": "Linf", "eps": eps, "step": 0.01, "steps": steps, "draws": 1}
    table |= {"forwards": 2.0 * steps, "gradients": 1.0 * steps, "breakdown": ""}
    for side, hit in sides.items():
        pred = np.where(hit, label, (label + 1) % 4)
        table |= {f"{side}_pred": pred, f"{side}_single_pred": pred}
        table |= {f"{side}_margin": np.where(hit, 1.0, -1.0), f"{side}_wrong": 1.0 - hit}
        table |= {f"{side}_confidence": 0.75, f"{side}_nll": 0.5, f"{side}_brier": 0.25}
    table |= {"chosen_margin": table["adv_margin"], "linf": eps, "l2": eps, "distance": np.nan}
    return pd.DataFrame(table | columns)


def elsewhere(attack: str, right: np.ndarray, clean: int = N) -> pd.DataFrame:
    """Records of images that were crafted on another model; they have no more columns."""
    columns = ["attack", "index", "label", "clean_pred", "adv_pred", "adv_margin", "chosen_margin"]
    columns += ["adv_single_pred", "adv_wrong", "linf", "l2"]
    return rows(attack, right, clean=clean)[columns]


def layer_table(spread: float = 0.9) -> pd.DataFrame:
    """Twelve layers; the input layer moves most by one measure, the last one by the other."""
    names = ["normalize", "conv1", *(f"layer{s}.{b}.conv1" for s in (1, 2) for b in range(4))]
    names += ["pool", "linear"]
    depth = np.arange(len(names))
    table = {"layer": names, "depth": depth, "kind": ["Normalize", *["Conv2d"] * 11]}
    table |= {"relative_difference": 0.1 + 0.01 * depth, "distance": 0.5 - 0.01 * depth}
    table |= {"clean_sigma": 2.0, "adv_sigma": 2.0 * spread}
    table |= {"clean_mean": 1.0, "adv_mean": 1.5}
    for measure in ("max", "top"):  # values before the classifier grow threefold, elsewhere by 10 %
        table |= {f"clean_{measure}": 2.0, f"noise_{measure}": 2.1}
        table[f"adv_{measure}"] = np.where(depth == 10, 6.0, 2.2)
    table |= {"adv_changed": 0.9 - 0.05 * depth, "noise_changed": 0.3, "noise_relative": 0.05}
    return pd.DataFrame(table)


def searched(kept: int) -> pd.DataFrame:
    """Records of a search without gradients that leaves so many of N images right."""
    return rows("square", planted(kept), 300, method="square", gradients=0.0)


def model(
    family: str,
    survivors: Sequence[int] = (4, 20, 4),
    *,
    base: str = "standard",
    clean: int = N,
    carried: int | Mapping[str, int] | None = None,
    curve: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    setting: Any = 1,
    suite: Sequence[pd.DataFrame] | None = None,
    **more: Any,
) -> Model:
    """A model that keeps so many of N images under main, short and long, and over both curves.

    clean: how many it has right without an attack. carried: how many of the dense network's it
    keeps, by attack where that differs. suite: the records of more attacks; by default a search
    that finds no more than long.
    """
    least = min(survivors)  # by default, nothing but the three attacks adds to the union
    carried = max(4, least) if carried is None else carried
    curve = (40, max(20, least), max(4, least), 0) if curve is None else curve
    steps = (max(20, least), *[max(4, least)] * 2) if steps is None else steps
    suite = [searched(survivors[2])] if suite is None else suite
    tables = [
        rows(name, planted(kept), ATTACKS[name][1], clean=clean)
        for name, kept in zip(ATTACKS, survivors, strict=True)
    ]
    tables += list(suite)
    budgets = (0, 16 / 255, 48 / 255, 96 / 255)
    tables += [rows("curve_eps", planted(k), eps=e) for e, k in zip(budgets, curve, strict=True)]
    tables += [rows("curve_steps", planted(k), s) for s, k in zip((1, 5, 50), steps, strict=True)]
    root, transfers = f"dense-{base}", {}
    if family != "dense":
        kept = dict.fromkeys(ATTACKS, carried) if isinstance(carried, int) else carried
        transfers = {(root, name): elsewhere(name, planted(k), clean) for name, k in kept.items()}
    name = f"{family}-{base}"
    card = {"setting": setting, "prune_ratio": 0.25, "sparsity": 0.2, "bits": 32, "parameters": 10}
    card |= {"sha256": family, "twin_agreement": None}
    card |= {"nonzero": 8, "macs": 56789, "inert": 0.0, "file_bytes": 4321, "stored_bits": 999}
    layers = more.pop("layers", layer_table())
    records = pd.concat(tables, ignore_index=True)
    do = "train" if family == "dense" else "prune"
    return Model(name, family, root, root, do, card | more, records, layers, transfers)


def settings(**changes: Any) -> Params:
    """The settings of a planted run: attacks, suite and curves of its own, and no studies."""
    raw = RAW | {"profile": "digits"}
    attacks = {
        name: {"eps": "48/255", "step": step, "steps": steps, "random_start": False}
        for name, (step, steps) in ATTACKS.items()
    }
    attacks["square"] = {"method": "square", "eps": "48/255", "queries": 300}
    suite = {"table": list(ATTACKS), "transfer": list(EXCHANGED)}
    suite |= {kind: ["square"] for kind in KINDS}
    own, planted_here = raw["profiles"]["digits"], ("attacks", "suite", "curves")
    raw["profiles"] = {"digits": {k: v for k, v in own.items() if k not in planted_here}}
    raw |= {"attacks": attacks, "suite": suite, "attack": {"main": "main"}}
    raw["curves"] = {"eps": [0, 16 / 255, 48 / 255, 96 / 255], "steps": [1, 5, 50]}
    raw |= {"prune": {"A": 1, "B": 2}, "models": {}, "studies": {}}
    return parse(Params, raw | changes, "test")


def swept_on(n: int, params: Params) -> Params:
    """The same, with settings of sweeps and curves attacked on the first `n` images."""
    raw = params.model_dump(exclude_unset=True)
    raw["profiles"]["digits"]["sweep_images"] = n
    return parse(Params, raw, "test")


def point(order: int, survivors: Sequence[int] = (4, 20, 4)) -> pd.DataFrame:
    """The records of a setting of a sweep."""
    tables = [
        rows(name, planted(kept), ATTACKS[name][1])
        for name, kept in zip(ATTACKS, survivors, strict=True)
    ]
    facts = {"order": order, "value": str(order + 1), "prune_ratio": 0.5, "sparsity": 0.5}
    return pd.concat(tables, ignore_index=True).assign(**facts)


def record(run: Run, folder: Path = Path()) -> None:
    """Write the files of a run as the stages do: models, answers to others' images, test images."""
    tables = []
    for one in run.models:
        place = folder / "runs/digits" / one.name
        place.mkdir(parents=True, exist_ok=True)
        (place / "model.json").write_text(json.dumps(one.card))
        one.records.to_parquet(place / "records.parquet")
        one.layers.to_parquet(place / "layers.parquet")
        tables += [
            table.assign(target=one.name, source=source, attack=attack)
            for (source, attack), table in one.transfers.items()
        ]
    if tables:
        (folder / "records/digits").mkdir(parents=True, exist_ok=True)
        pd.concat(tables).to_parquet(folder / "records/digits/transfer.parquet")
    images, labels = torch.from_numpy(run.clean_images), torch.zeros(N, dtype=torch.int64)
    (folder / "data/digits").mkdir(parents=True, exist_ok=True)
    split = Split(images, labels, tuple(run.classes), "planted")
    save_split(split, folder / "data/digits/test.safetensors")


def run_of(
    *models: Model, params: Params | None = None, studies: Mapping[str, pd.DataFrame] | None = None
) -> Run:
    """A run: a dense network first, then the given models, tried on each other's main images.

    What was not planted of that is as under the images of the dense network. studies: records by
    the name of a study of `params`.
    """
    chosen = list(models) or [model("A"), model("B")]
    if chosen[0].family != "dense":
        chosen = [model("dense"), *chosen]
    main = EXCHANGED[0]
    heard = [
        {(o.name, main): one.transferred(main) for o in chosen if o is not one} | one.transfers
        for one in chosen
    ]
    pairs = zip(chosen, heard, strict=True)
    known = [replace(one, transfers=found) for one, found in pairs]
    return whole(known, params or settings(), studies)


def whole(
    models: list[Model],
    params: Params,
    studies: Mapping[str, pd.DataFrame] | None = None,
    attackers: Transfers | None = None,
) -> Run:
    """A run of these models and records of studies on four classes."""
    return Run(
        params=params,
        models=models,
        attackers=attackers or {},
        studies=dict(studies or {}),
        source="planted",
        classes=list("abcd"),
        clean_images=np.full((N, 1, 8, 8), 100, np.uint8),
        folder=Path("nowhere"),
    )
