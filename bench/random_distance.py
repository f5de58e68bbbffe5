"""The minimum-norm search on models that draw at random, with its constants and with others.

Needs a finished run of the digits profile (make repro). On validation images, which no report is
made of, SAP and dropout of both dense networks are searched with the constants as they are, and
with each of them changed.
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
from advprune.data import load_split
from advprune.models.checkpoint import load_model
from advprune.pruning import prune

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {"SAP": 1.0, "dropout": 0.1}
TRIED = {"RATE": (1.0, 3.0), "STEP": (0.4, 1.0), "MOMENTUM": (0.0,), "MEMORY": (0.0,)}
CHANGES: dict[str, dict[str, float]] = {"as it is": {}} | {
    f"{key} {value}": {key: value} for key, values in TRIED.items() for value in values
}


def distances(model: nn.Module, pair: tuple[Tensor, Tensor], **changes: float) -> Tensor:
    """By the search of params.yaml, with other constants, `[n]`."""
    before = {key: getattr(search, key) for key in changes}
    how = search.MinimumNormSettings(steps=60, restarts=2, draws=2, backward="identity", batch=1000)
    try:
        vars(search).update(changes)
        return search.minimum_norm(model, *pair, how)[1]
    finally:
        vars(search).update(before)


def main(
    folder: Annotated[Path, typer.Option(help="Where a finished run lies.")] = ROOT,
    images: Annotated[int, typer.Option(help="How many validation images.")] = 100,
    out: Annotated[Path, typer.Option(help="Where figures go.")] = ROOT
    / "bench/random_distance.json",
) -> None:
    """Measure, print and write, model by model."""
    torch.set_num_threads(1)
    x, y = load_split(folder / "data/digits", "val")
    found: list[dict[str, Any]] = []
    for recipe in ("standard", "robust"):
        dense = load_model(folder / f"runs/digits/dense-{recipe}/model.safetensors")
        for family, setting in FAMILIES.items():
            model, started = prune(family, dense, setting).model, time.process_time()
            found.append({"model": f"{family}-{recipe}"})
            for name, changes in CHANGES.items():
                grey = 255 * distances(model, (x[:images], y[:images]), **changes).clamp_max(1)
                measured = {"median": float(grey.median()), "mean": float(grey.mean())}
                found[-1][name] = {key: round(value, 2) for key, value in measured.items()}
                print(found[-1]["model"], name, found[-1][name], flush=True)
            found[-1]["seconds"] = round(time.process_time() - started)
            out.write_text(json.dumps({"images": images, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
