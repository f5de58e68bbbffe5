"""A reference network on a machine without DVC: trained, rounded to 16 bits, attacked, recorded.

Needs a profile's splits, as stage prepare writes them (train, val and test.safetensors). Weights
are those of the best epoch on the first 1,000 validation images. Every result is written as soon as
it is there, and no attack begins after the deadline.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import pandas as pd
import torch
import typer
from torch import nn

from advprune.attacks import pgd, to_pixels
from advprune.attacks.apgd import APGDSettings, apgd
from advprune.attacks.autoattack import autoattack
from advprune.attacks.cost import Cost
from advprune.attacks.minimum_norm import MinimumNormSettings, minimum_norm
from advprune.core.device import setup
from advprune.core.params import ModelSettings, RecipeSettings, TrainSettings
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


def train(
    model: ModelSettings, settings: TrainSettings, recipe: RecipeSettings, data: Path, until: float
) -> tuple[nn.Module, pd.DataFrame, dict[str, Any]]:
    """The trained network, its history and what was noted.

    A throwaway network is trained on a few batches first; where all epochs would end after `until`
    (seconds since the script began), the schedule is made for fewer.
    """
    whole, val = (read_split(data / f"{name}.safetensors") for name in ("train", "val"))
    held_out, device, stamps = (val.images[:1000], val.labels[:1000]), setup(), [0.0]

    def trainer(count: int, epochs: int) -> Trainer:
        pair = whole.images[:count], whole.labels[:count]
        chosen = recipe.model_copy(update={"epochs": epochs})
        network = begin(model, whole, 0).to(device)
        return Trainer(
            *(network, pair, held_out, settings, chosen, 0, None),
            before_epoch=lambda _: stamps.append(now()),
            measure=lambda _: stamps.append(now()) or {},
            after_epoch=lambda _: stamps.append(now()),
        )

    few, total, asked = 30 * settings.batch, len(whole.labels), recipe.epochs or settings.epochs
    trainer(few, 2).run()
    began, trained, judged = stamps[-3:]  # of the second epoch: in the first one all is set up
    epoch = (trained - began) * total / min(few, total) + judged - trained
    epochs = max(1, min(asked, int((until - now()) / epoch)))
    notes = {"epochs asked": asked, "epochs": epochs, "measured s/epoch": epoch, "began s": now()}
    last = trainer(total, epochs)
    history = pd.DataFrame(last.run())
    return last.model, history, notes | {"ended s": now()}


def evaluate(model: nn.Module, data: Path, count: int, deadline: float, results: Results) -> None:
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
        if now() > deadline or not len(rows):
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
        return lambda a, b, c: apgd(model, a, b, settings, c)

    def nearest(norm: str) -> Callable[..., torch.Tensor]:
        settings = MinimumNormSettings(norm, **shared)
        return lambda a, b, c: minimum_norm(model, a, b, settings, c)[0]

    note("pgd_50_margin", every, long)
    left = note("apgd_ce", every, auto("ce"))
    note("apgd_targeted", left, auto("targeted"))
    note("minimum_norm_linf", every, nearest("Linf"), pixels=False)
    note("minimum_norm_l2", every, nearest("L2"), pixels=False)
    if now() < deadline:
        cost, started, rows = Cost(), now(), slice(1000)
        _, counts = autoattack(model, x[rows], y[rows], EPS, batch=1000, cost=cost)
        passes = {"forwards": cost.forwards, "gradients": cost.gradients}
        results.notes["autoattack"] = counts | passes | {"n": 1000, "s": now() - started}
        results.write()


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the splits.")],
    out: Annotated[Path, typer.Argument(help="Folder for weights, history, records, notes.")],
    width: Annotated[int, typer.Option(help="Of the ResNet18.")] = 16,
    method: Annotated[str, typer.Option(help="standard or pgd.")] = "pgd",
    steps: Annotated[int, typer.Option(help="Of PGD, in training.")] = 3,
    step: Annotated[float, typer.Option(help="Their length in grey levels.")] = 5,
    epochs: Annotated[int, typer.Option(help="Fewer where they do not fit.")] = 30,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.")] = 0.2,
    smoothing: Annotated[float, typer.Option(help="Of the labels.")] = 0.0,
    until: Annotated[float, typer.Option(help="Training ends then, in seconds.")] = 1e9,
    deadline: Annotated[float, typer.Option(help="No attack begins after it.")] = 1e9,
    images: Annotated[int, typer.Option(help="Test images to attack.")] = 10_000,
) -> None:
    """Train, save and evaluate one network."""
    out.mkdir(parents=True, exist_ok=True)
    settings = TrainSettings(
        batch=batch, lr=lr, label_smoothing=smoothing, flip=True, crop=4, eps=EPS, step=step / 255
    )
    recipe = RecipeSettings(method=method, steps=steps, epochs=epochs)
    network = ModelSettings(architecture="resnet18", width=width)
    results = Results(out)
    model, history, results.notes["training"] = train(network, settings, recipe, data, until)
    history.to_csv(out / "history.csv", index=False)
    save_model(model, out / "model.fp16.safetensors", torch.float16)
    results.write()
    device = setup()
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32
    evaluate(load_model(out / "model.fp16.safetensors").to(device), data, images, deadline, results)


if __name__ == "__main__":
    typer.run(main)
