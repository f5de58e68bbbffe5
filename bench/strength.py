"""The suite beside official AutoAttack on the same images: what each leaves, passes and seconds.

Needs networks and splits of a profile (make repro for digits; weights/cifar10-45k/README.md). Ours
is counted twice: the attacks of the suite alone, which are to be as strong as AutoAttack, and
everything that a row of the leaderboard takes: published tables, curves and the verdict's probes as
well. All work on one thread; images are rounded to 8 bits and scored on the model itself: an int8
network by its integers. What was finished of a model is read back after a kill.
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
from advprune.core.attack_settings import AttackSettings, OtherAttack
from advprune.core.device import setup
from advprune.core.params import Params, load
from advprune.core.resume import Parts
from advprune.data import load_split
from advprune.evaluate.compare import right
from advprune.evaluate.craft import craft, kind_of
from advprune.evaluate.craft import rows as rows_of
from advprune.evaluate.records import Work
from advprune.evaluate.robust import union
from advprune.evaluate.suite import Suite
from advprune.models.checkpoint import load_model
from advprune.quantization.post_training import quantize

ROOT = Path(__file__).resolve().parent.parent
Images = tuple[Tensor, Tensor]
ABOUT = "One thread of a CPU core; seconds of the suite are those of everything by its passes."
CALIBRATION = 512  # training images


def ours(model: nn.Module, parent: nn.Module | None, pair: Images, params: Params) -> pd.DataFrame:
    """The records of everything."""
    profile, choice = params.active(), params.attack
    with TemporaryDirectory() as folder:
        suite = Suite(*pair, profile, choice, params.seed, Parts(Path(folder), files=[]), parent)
        records, _ = suite.attack("model", model)
    by_attack = records.groupby("attack", sort=False)[["forwards", "gradients"]].sum().sum(axis=1)
    print((by_attack / len(pair[1])).round(1).to_string(), flush=True)
    return records


def official(model: nn.Module, pair: Images, eps: float) -> pd.DataFrame:
    """AutoAttack, standard, in the same columns."""
    setting = typed("autoattack", OtherAttack.model_validate({"method": "autoattack", "eps": eps}))
    crafted = craft(model, *pair, setting, Work(batch=1000))
    return rows_of(model, pair[0], crafted, pair[1], "autoattack")


def timed(made: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table whose `seconds` add up to those of one core that it took."""
    started = time.process_time()
    table = made()
    return table.assign(seconds=(time.process_time() - started) / len(table))


def compared(
    records: pd.DataFrame, theirs: pd.DataFrame, main: AttackSettings, suite: list[str]
) -> list[dict[str, Any]]:
    """One row for the attacks of the suite, one for everything and one for AutoAttack."""
    sides = {"suite": records[records.attack.isin(suite)], "everything": records}
    tables = {name: union(part, [], main.norm, main.eps) for name, part in sides.items()}
    tables["AutoAttack"] = theirs
    passes = {name: float((t.forwards + t.gradients).mean()) for name, t in tables.items()}
    took = records.seconds.sum()
    seconds = {name: took * passes[name] / passes["everything"] for name in sides}
    seconds["AutoAttack"] = theirs.seconds.sum()
    unbroken = right(theirs)
    return [
        {
            "attacks": name,
            "n": len(table),
            "robust_accuracy": float(left.mean()),
            "passes": passes[name],
            "passes_share": passes[name] / passes["AutoAttack"],
            "seconds": round(float(seconds[name]), 1),
            "broken by these alone": int((unbroken & ~left).sum()),
            "broken by AutoAttack alone": int((left & ~unbroken).sum()),
        }
        for name, table in tables.items()
        for left in [right(table)]
    ]


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
) -> None:
    """Measure, print a table and write it, model by model."""
    torch.set_num_threads(1)
    os.environ["ADVPRUNE_WORKERS"] = "1"
    wider = ROOT / "params" / f"{profile}.yaml"
    settings = load(wider if wider.is_file() else ROOT / "params.yaml", profile)
    x, y = load_split(run / "data" / profile, split)
    x, y, main = x[:images], y[:images], settings.active().table()[settings.attack.main]
    found: dict[str, Any] = {"profile": profile, "about": ABOUT, "rows": []}
    found |= json.loads(out.read_text()) if out.is_file() else {}
    for entry in models.split(","):
        bits, _, of = entry.rpartition(":")
        weights = run / "runs" / profile / of / "model.safetensors"
        parent = load_model(weights).to(setup())
        network = parent
        if bits:
            network = quantize(parent, load_split(run / "data" / profile, "train")[0][:CALIBRATION])
        known = entry, images, split, settings.model_dump(mode="json")
        parts = Parts(Path("checkpoints"), "strength", *known, files=[weights])
        sides = {
            "records": partial(ours, network, parent if bits else None, (x, y), settings),
            "autoattack": partial(official, network, (x, y), main.eps),
        }
        own, theirs = (parts.frame(key, partial(timed, made)) for key, made in sides.items())
        suite = getattr(settings.active().suite, kind_of(network))
        name = entry.replace(":", " of ")
        found["rows"] = [row for row in found["rows"] if row["model"] != name]
        found["rows"] += [{"model": name} | r for r in compared(own, theirs, main, suite)]
        print(tabulate(found["rows"], "keys", "github"), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
        parts.discard()


if __name__ == "__main__":
    typer.run(main)
