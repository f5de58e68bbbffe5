"""The minimum-norm search on models that draw at random: its constants, and whether it is enough.

Needs a finished run of the digits profile (make repro). On validation images, which no report is
made of, SAP and dropout of both dense networks are searched with the constants as they are, and
with each of them changed. Then PGD with gradients averaged over many draws is run at budgets of its
own, as an attack that shares nothing with the search: at each it should break hardly more images
than the search says (scored afresh), whereas the dense network loses more.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import typer
from torch import Tensor, nn

from advprune.attacks import minimum_norm as search
from advprune.attacks import pgd
from advprune.data import load_split
from advprune.models.checkpoint import load_model
from advprune.models.stochastic import mean_logits
from advprune.pruning import prune

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {"SAP": 1.0, "dropout": 0.1}
CHANGES: dict[str, dict[str, float]] = {
    "as it is": {},
    **{f"{key} {value}": {key: value} for key, value in (("RATE", 1.0), ("RATE", 3.0))},
    **{f"{key} {value}": {key: value} for key, value in (("STEP", 0.4), ("STEP", 1.0))},
    **{f"{key} {value}": {key: value} for key, value in (("MOMENTUM", 0.0), ("MEMORY", 0.0))},
}
BUDGETS = (16 / 255, 20 / 255, 24 / 255)
DRAWS = 100  # by which images are scored
Images = tuple[Tensor, Tensor]


def distances(model: nn.Module, pair: Images, **changes: float) -> Tensor:
    """By the search of params.yaml, with other constants, `[n]`."""
    before = {key: getattr(search, key) for key in changes}
    how = search.MinimumNormSettings(steps=60, restarts=2, draws=2, backward="identity", batch=1000)
    try:
        vars(search).update(changes)
        return search.minimum_norm(model, *pair, how)[1]
    finally:
        vars(search).update(before)


def broken(model: nn.Module, pair: Images, eps: float) -> float:
    """Which part of the images PGD on averaged gradients breaks, by the mean of fresh draws."""
    options: dict[str, Any] = {"loss": "margin", "draws": 10, "backward": "identity"}
    adv = pgd(model, *pair, eps, eps / 12, 40, **options, batch=1000)
    with torch.no_grad():
        return float((mean_logits(model, adv, DRAWS).argmax(1) != pair[1]).double().mean())


def main(
    folder: Annotated[Path, typer.Option(help="Where a finished run lies.")] = ROOT,
    images: Annotated[int, typer.Option(help="How many validation images.")] = 100,
    out: Annotated[Path, typer.Option(help="Where figures go.")] = ROOT
    / "bench/random_distance.json",
) -> None:
    """Measure, print and write, model by model."""
    torch.set_num_threads(1)
    x, y = load_split(folder / "data/digits", "val")
    pair, found = (x[:images], y[:images]), []
    for recipe in ("standard", "robust"):
        dense = load_model(folder / f"runs/digits/dense-{recipe}/model.safetensors")
        for family, setting in FAMILIES.items():
            model, started = prune(family, dense, setting).model, time.process_time()
            row: dict[str, Any] = {"model": f"{family}-{recipe}"}
            for name, changes in CHANGES.items():
                grey = 255 * distances(model, pair, **changes).clamp_max(1)
                row[name] = {"median": round(float(grey.median()), 2)}
                row[name]["mean"] = round(float(grey.mean()), 2)
                if not changes:
                    sizes = grey / 255
                print(row["model"], name, row[name], flush=True)
            if recipe == "standard":
                row["broken"] = {
                    f"{255 * eps:.0f}/255": {
                        "search": float((sizes <= eps).double().mean()),
                        "PGD": broken(model, pair, eps),
                        "dense": broken(dense, pair, eps),
                    }
                    for eps in BUDGETS
                }
                print(row["broken"], flush=True)
            found.append(row | {"seconds": round(time.process_time() - started)})
            out.write_text(json.dumps({"images": images, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
