"""Robust accuracy as reported beside official AutoAttack: what each leaves, passes and seconds.

Needs a finished run of the profile (make repro). Ours is the union of everything that the pipeline
runs on a model: suite, probes and curves. Both work on one thread, on the same images, which are
rounded to 8 bits and scored on the model itself: an int8 network by its integers.
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

import numpy as np
import pandas as pd
import torch
import typer
from tabulate import tabulate
from torch import nn

from advprune.attacks.registry import typed
from advprune.core.attack_settings import OtherAttack
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
Images = tuple[torch.Tensor, torch.Tensor]
CALIBRATION = 512  # training images


def ours(model: nn.Module, parent: nn.Module | None, pair: Images, params: Params) -> pd.DataFrame:
    """The union of suite, probes and curves, by image."""
    profile, choice = params.active(), params.attack
    with TemporaryDirectory() as folder:
        parts = Parts(Path(folder), files=[])
        suite = Suite(*pair, profile, choice, params.seed, parts, parent)
        records, _ = suite.attack("model", model)
    main = profile.table()[choice.main]
    return union(records, [], main.norm, main.eps)


def official(model: nn.Module, pair: Images, eps: float) -> pd.DataFrame:
    """AutoAttack, standard, in the same columns."""
    setting = typed("autoattack", OtherAttack.model_validate({"method": "autoattack", "eps": eps}))
    made = craft(model, *pair, setting, Work(batch=1000))
    return rows_of(model, pair[0], made, pair[1], "autoattack")


def side(name: str, made: Callable[[], pd.DataFrame]) -> tuple[np.ndarray, dict[str, Any]]:
    """Which images are right after an attack, and its figures."""
    started = time.perf_counter()
    table = made()
    seconds, kept = time.perf_counter() - started, right(table)
    passes = float((table.forwards + table.gradients).mean())
    found = {"robust_accuracy": float(kept.mean()), "passes": passes, "seconds": round(seconds, 1)}
    return kept, {f"{key}:{name}": value for key, value in found.items()}


def main(
    out: Annotated[Path, typer.Argument(help="JSON file for the results.")],
    models: Annotated[
        str, typer.Option(help="Of the leaderboard; int8 of one as int8:<model>.")
    ] = "dense-robust,HYDRA-robust,int8:dense-robust",
    images: Annotated[int, typer.Option(help="Test images.")] = 300,
    runs: Annotated[Path | None, typer.Option(help="Networks of a finished run.")] = None,
    data: Annotated[Path | None, typer.Option(help="Its splits.")] = None,
) -> None:
    """Measure, print a table and write it, model by model."""
    torch.set_num_threads(1)
    os.environ["ADVPRUNE_WORKERS"] = "1"
    settings = load(ROOT / "params.yaml")
    name, profile = settings.profile, settings.active()
    test = load_split(data or ROOT / "data" / name, "test")
    pair: Images = (test[0][:images], test[1][:images])
    table: list[dict[str, Any]] = []
    for entry in models.split(","):
        bits, _, of = entry.rpartition(":")
        parent = load_model((runs or ROOT / "runs" / name) / of / "model.safetensors")
        network = parent
        if bits:
            train, _ = load_split(data or ROOT / "data" / name, "train")
            network = quantize(parent, train[:CALIBRATION])
        own, found = side("ours", partial(ours, network, parent if bits else None, pair, settings))
        theirs, more = side("AutoAttack", partial(official, network, pair, profile.eps))
        row = {"model": entry.replace(":", " of "), "n": len(pair[1]), **found, **more}
        row |= {"images only AutoAttack breaks": int((own & ~theirs).sum())}
        row |= {"images only ours break": int((theirs & ~own).sum())}
        row["share of its passes"] = row["passes:ours"] / row["passes:AutoAttack"]
        table.append(row)
        print(tabulate(table, "keys", "github"), flush=True)
        out.write_text(json.dumps({"profile": name, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
