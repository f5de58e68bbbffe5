"""Robust accuracy as reported beside official AutoAttack: what each leaves, passes and seconds.

Needs networks and splits of a profile (make repro for digits; weights/cifar10-45k/README.md). Ours
is the union of everything that the pipeline runs on a model: suite, probes and curves. Both work on
one thread, on the same images, which are rounded to 8 bits and scored on the model itself: an int8
network by its integers. With --keep, finished sides are read back after a kill.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import pandas as pd
import torch
import typer
from tabulate import tabulate
from torch import Tensor, nn

from advprune.attacks.registry import typed
from advprune.core.attack_settings import OtherAttack
from advprune.core.device import setup
from advprune.core.params import Params, load
from advprune.core.resume import Parts
from advprune.data import load_split
from advprune.evaluate.compare import right
from advprune.evaluate.craft import Work, craft
from advprune.evaluate.craft import rows as rows_of
from advprune.evaluate.robust import union
from advprune.evaluate.suite import Suite
from advprune.models.checkpoint import load_model
from advprune.quantization.post_training import quantize

ROOT = Path(__file__).resolve().parent.parent
Images = tuple[Tensor, Tensor]
CALIBRATION = 512  # training images


def ours(model: nn.Module, parent: nn.Module | None, pair: Images, params: Params) -> pd.DataFrame:
    """The union of suite, probes and curves, by image."""
    profile, choice = params.active(), params.attack
    with TemporaryDirectory() as folder:
        suite = Suite(*pair, profile, choice, params.seed, Parts(Path(folder), files=[]), parent)
        records, _ = suite.attack("model", model)
    by_attack = records.groupby("attack", sort=False)[["forwards", "gradients"]].sum().sum(axis=1)
    print((by_attack / len(pair[1])).round(1).to_string(), flush=True)
    main = profile.table()[choice.main]
    return union(records, [], main.norm, main.eps)


def official(model: nn.Module, pair: Images, eps: float) -> pd.DataFrame:
    """AutoAttack, standard, in the same columns."""
    setting = typed("autoattack", OtherAttack.model_validate({"method": "autoattack", "eps": eps}))
    made = craft(model, *pair, setting, Work(batch=1000))
    return rows_of(model, pair[0], made, pair[1], "autoattack")


def kept(made: Callable[[], pd.DataFrame], path: Path | None) -> pd.DataFrame:
    """A side's table with the seconds of one core that it took, read back where it is there."""
    if path is not None and path.is_file():
        return pd.read_parquet(path)
    started = time.process_time()
    table = made()
    table = table.assign(seconds=time.process_time() - started)
    if path is not None:
        table.to_parquet(path)
    return table


def main(
    out: Annotated[
        Path, typer.Argument(help="JSON file of a profile; rows of the same models are replaced.")
    ],
    models: Annotated[
        str, typer.Option(help="Of the leaderboard; int8 of one as int8:<model>.")
    ] = "dense-robust,HYDRA-robust,int8:dense-robust",
    profile: Annotated[str, typer.Option(help="Of params.yaml.")] = "digits",
    images: Annotated[int, typer.Option(help="How many, the first ones.")] = 300,
    split: Annotated[str, typer.Option(help="Of which; budgets are chosen on val.")] = "test",
    run: Annotated[Path, typer.Option(help="Folder with runs/ and data/ of the profile.")] = ROOT,
    keep: Annotated[Path | None, typer.Option(help="Folder for finished sides.")] = None,
) -> None:
    """Measure, print a table and write it, model by model."""
    torch.set_num_threads(1)
    os.environ["ADVPRUNE_WORKERS"] = "1"
    settings = load(ROOT / "params.yaml", profile)
    x, y = load_split(run / "data" / profile, split)
    pair, eps = (x[:images], y[:images]), settings.active().eps
    found = json.loads(out.read_text())["rows"] if out.is_file() else []
    for entry in models.split(","):
        bits, _, of = entry.rpartition(":")
        parent = load_model(run / "runs" / profile / of / "model.safetensors").to(setup())
        network = parent
        if bits:
            network = quantize(parent, load_split(run / "data" / profile, "train")[0][:CALIBRATION])
        row: dict[str, Any] = {"model": entry.replace(":", " of "), "n": len(pair[1])}
        sides = {
            "ours": partial(ours, network, parent if bits else None, pair, settings),
            "AutoAttack": partial(official, network, pair, eps),
        }
        left = []
        for side, made in sides.items():
            path = keep / f"{split}-{entry.replace(':', '-')}-{side}.parquet" if keep else None
            table = kept(made, path)
            left.append(right(table))
            row[f"robust_accuracy:{side}"] = float(left[-1].mean())
            row[f"passes:{side}"] = float((table.forwards + table.gradients).mean())
            row[f"seconds:{side}"] = round(float(table.seconds.iloc[0]), 1)
        row["images only AutoAttack breaks"] = int((left[0] & ~left[1]).sum())
        row["images only ours break"] = int((left[1] & ~left[0]).sum())
        row["share of its passes"] = row["passes:ours"] / row["passes:AutoAttack"]
        found = [one for one in found if one["model"] != row["model"]] + [row]
        print(tabulate(found, "keys", "github"), flush=True)
        out.write_text(json.dumps({"profile": profile, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
