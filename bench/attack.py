"""The attack engine beside torchattacks.PGD: same model, images, steps and start, in one run.

The two take turns, round by round, and the ratio is taken within each round, so that a machine
whose speed drifts does not favour either. Prints image-steps a second of both and the median ratio.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import torchattacks
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from advprune.attacks import pgd
from advprune.data import load_split
from advprune.models.checkpoint import build, load_model
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec, spec_of

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def untrained(width: int, images: torch.Tensor) -> nn.Module:
    """A ResNet18 of a width whose batch-norm statistics have seen the images."""
    spec = ModelSpec(
        architecture="resnet18",
        width=width,
        channels=3,
        classes=10,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    model = build(spec)
    initialize(model, torch.Generator().manual_seed(0))
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(images[:64])
    return model.eval()


def timed(attack: Attack, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The attacked images, and the seconds it took."""
    started = time.perf_counter()
    found = attack(images, labels)
    if images.is_cuda:
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images still classified as their label."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def compare(
    table: Table, name: str, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], rounds: int
) -> None:
    """Time the peer and the engine, plain, in bfloat16, and dropping decided samples, in turn."""
    images, labels = data
    peer = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)

    def engine(**options: Any) -> Attack:
        return lambda x, y: pgd(model, x, y, EPS, STEP, STEPS, random_start=False, **options)

    attacks = {
        "torchattacks": peer,
        "engine": engine(),
        "engine, bfloat16": engine(precision="bfloat16"),
        "engine, drop": engine(drop=True),
    }
    seconds: dict[str, list[float]] = {label: [] for label in attacks}
    robust = {}
    for turn in range(rounds + 1):  # the first round warms up and is not counted
        for label, attack in attacks.items():
            found, took = timed(attack, images, labels)
            robust[label] = accuracy(model, found, labels)
            if turn:
                seconds[label].append(took)
    for label, times in seconds.items():
        pairs = zip(seconds["torchattacks"], times, strict=True)
        ratio = median(theirs / ours for theirs, ours in pairs)
        rate = len(images) * STEPS / median(times)
        table.add_row(name, label, f"{rate:,.0f}", f"{ratio:.2f}x", f"{robust[label]:.3f}")


def main(
    images: Annotated[int, typer.Option(help="How many images.")] = 64,
    rounds: Annotated[int, typer.Option(help="Counted rounds.")] = 5,
    profile: Annotated[
        str | None, typer.Option(help="Also time this profile's trained dense network.")
    ] = None,
) -> None:
    """Print the comparison at widths 16 and 64."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns = ("model", "attack", "image-steps/s", "ratio", "accuracy left")
    table = Table(*columns, title=f"PGD, eps 8/255, {STEPS} steps, {images} images, {device}")
    noise = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    for width in (16, 64):
        model = untrained(width, noise.cpu()).to(device)
        with torch.no_grad():
            labels = model(noise).argmax(1)
        compare(table, f"ResNet18 width {width}, untrained", model, (noise, labels), rounds)
    if profile:
        model = load_model(Path("models", profile, "dense-standard", "model.safetensors")).to(
            device
        )
        pictures, labels = load_split(Path("data", profile), "test")
        data = pictures[:images].to(device), labels[:images].to(device)
        width = spec_of(model).width
        compare(table, f"ResNet18 width {width}, {profile}", model, data, rounds)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
