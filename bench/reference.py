"""A reference network on a machine without DVC: trained, rounded to 16 bits, attacked, recorded.

Needs a profile's splits, as stage prepare writes them (train, val and test.safetensors). Weights
are those of the best epoch on the first 1,000 validation images. Every result is written as soon as
it is ready.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import pandas as pd
import torch
import typer
from ruamel.yaml import YAML
from torch import nn

from advprune.attacks import pgd, to_pixels
from advprune.attacks.apgd import APGDSettings, apgd
from advprune.attacks.autoattack import autoattack
from advprune.attacks.cost import Cost
from advprune.attacks.minimum_norm import MinimumNormSettings, minimum_norm
from advprune.core.device import setup
from advprune.core.train_settings import ModelSettings, RecipeSettings, TrainSettings
from advprune.data import load_split, read_split
from advprune.evaluate.records import score
from advprune.models.checkpoint import load_model, save_model
from advprune.training.base import begin
from advprune.training.standard import Trainer

EPS, BATCH = 8 / 255, 1024
KEPT = ["index", "label", "attack", "clean_pred", "clean_margin", "adv_pred", "adv_margin"]
STARTED = time.perf_counter()


def now() -> float:
    """Seconds since the script began."""
    return time.perf_counter() - STARTED


@dataclass
class Results:
    """What is written to a folder: notes (times, counts) as JSON, records as parquet."""

    folder: Path
    notes: dict[str, Any] = field(default_factory=dict)
    frames: list[pd.DataFrame] = field(default_factory=list)

    def write(self) -> None:
        """Write all that there is so far."""
        (self.folder / "notes.json").write_text(json.dumps(self.notes, indent=1) + "\n")
        if self.frames:
            records = pd.concat(self.frames)
            records.to_parquet(self.folder / "records.parquet", index=False, compression="zstd")


def trained(
    network: ModelSettings, settings: TrainSettings, recipe: RecipeSettings, data: Path
) -> tuple[nn.Module, pd.DataFrame]:
    """The network of the best epoch, and its history."""
    train, val = (read_split(data / f"{name}.safetensors") for name in ("train", "val"))
    model = begin(network, train, 0).to(setup())
    held_out = val.images[:1000], val.labels[:1000]
    run = Trainer(model, (train.images, train.labels), held_out, settings, recipe, 0, None)
    return model, pd.DataFrame(run.run())


def evaluate(model: nn.Module, data: Path, count: int, results: Results) -> None:
    """Attack the first `count` test images; Linf images of 8 bits, scored in float32.

    Targeted APGD works on those that APGD on the cross-entropy has left. Minimum-norm images are
    not rounded: their columns `linf` and `l2` are the distances.
    """
    x, y = (tensor[:count] for tensor in load_split(data, "test"))
    every = torch.arange(len(y))
    shared: dict[str, Any] = {"batch": BATCH, "precision": "bfloat16"}

    def note(
        name: str, rows: torch.Tensor, attack: Callable[..., torch.Tensor], pixels: bool = True
    ) -> torch.Tensor:
        if not len(rows):
            return rows
        cost, started, clean = Cost(), now(), x[rows]
        adv = attack(clean, y[rows], cost)
        adv = to_pixels(adv, clean, EPS) / 255 if pixels else adv
        frame = score(model, clean, adv, y[rows], batch=BATCH, attack=name)
        right = torch.tensor(frame["adv_pred"] == frame["label"])
        frame["index"] = rows.numpy()
        small = {"label": "int8", "clean_pred": "int8", "adv_pred": "int8"}
        results.frames.append(frame[[*KEPT, "linf", "l2"]].astype(small))
        passes = {"forwards": cost.forwards, "gradients": cost.gradients}
        results.notes[name] = {"n": len(rows), "s": now() - started, "ended s": now(), **passes}
        results.write()
        return rows[right]

    def long(a: torch.Tensor, b: torch.Tensor, c: Cost) -> torch.Tensor:
        more = {"loss": "margin", "keep": "best", "drop": True, "cost": c}
        return pgd(model, a, b, EPS, EPS / 8, 50, **shared, **more)

    def auto(loss: str) -> Callable[..., torch.Tensor]:
        settings = APGDSettings(EPS, loss=loss, pixels=True, **shared)
        return lambda a, b, c: apgd(model, a, b, replace(settings, cost=c))

    def nearest(norm: str) -> Callable[..., torch.Tensor]:
        settings = MinimumNormSettings(norm=norm, **shared)
        return lambda a, b, c: minimum_norm(model, a, b, replace(settings, cost=c))[0]

    note("pgd_50_margin", every, long)
    left = note("apgd_ce", every, auto("ce"))
    note("apgd_targeted", left, auto("targeted"))
    note("minimum_norm_linf", every, nearest("Linf"), pixels=False)
    note("minimum_norm_l2", every, nearest("L2"), pixels=False)
    note("autoattack", every[:1000], lambda a, b, c: autoattack(model, a, b, EPS, cost=c)[0])


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the splits.")],
    out: Annotated[Path, typer.Argument(help="Folder for weights, history, records, notes.")],
    width: Annotated[int, typer.Option(help="Of the ResNet18.")] = 16,
    recipe: Annotated[str, typer.Option(help="As in params.yaml.")] = "{method: pgd, steps: 3}",
    train: Annotated[str, typer.Option(help="As in params.yaml.")] = "{lr: 0.2, step: 5/255}",
    images: Annotated[int, typer.Option(help="Test images to attack.")] = 10_000,
) -> None:
    """Train, save and evaluate one network."""
    out.mkdir(parents=True, exist_ok=True)
    read = YAML(typ="safe").load
    settings = TrainSettings(**{"flip": True, "crop": 4, "eps": EPS} | read(train))
    network, results = ModelSettings(architecture="resnet18", width=width), Results(out)
    model, history = trained(network, settings, RecipeSettings(**read(recipe)), data)
    results.notes["trained s"] = now()
    history.to_csv(out / "history.csv", index=False)
    save_model(model, out / "model.fp16.safetensors", torch.float16)
    results.write()
    device = setup()
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32
    evaluate(load_model(out / "model.fp16.safetensors").to(device), data, images, results)


if __name__ == "__main__":
    typer.run(main)
