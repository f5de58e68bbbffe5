"""The time of a flip of the bit-flip attack compared with that of the passes it needs.

For a flip, progressive bit search needs the gradient by all weights (a forward and a backward pass)
and one forward pass for each layer tried. The bound is the time of as many whole passes, timed
between attacks of the same run on the same stored network and images; the search reuses what comes
before a changed layer, so it can be faster than its bound. Prints seconds of both and their ratio.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import torch.nn.functional as F
import typer
from tabulate import tabulate
from torch import nn

from advprune.attacks import bitflip
from advprune.attacks.stored_bits import StoredModel, store
from advprune.models.checkpoint import build
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec


def untrained(width: int, images: torch.Tensor) -> nn.Module:
    """A ResNet18 of a width on the images' device, whose batch-norm has seen them."""
    known = {"channels": 3, "classes": 10, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model = build(ModelSpec(architecture="resnet18", width=width, **known))
    initialize(model, torch.Generator().manual_seed(0))
    model.train().to(images.device)
    with torch.no_grad():
        for _ in range(10):
            model(images)
    return model.eval()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that work takes."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def gradient(stored: StoredModel, images: torch.Tensor, labels: torch.Tensor) -> None:
    """A forward pass and a backward pass to all stored weights."""
    weights = [stored.weight(name).requires_grad_(True) for name in stored.layers]
    torch.autograd.grad(F.cross_entropy(stored.model(images), labels), weights)
    for weight in weights:
        weight.requires_grad_(False)


def flip_seconds(stored: StoredModel, images: torch.Tensor, flips: int) -> tuple[float, float]:
    """Seconds and forward passes of a flip, without what comes before the first one: the difference
    of a long attack and a short one."""
    device, passes = images.device, []

    def attack(budget: int) -> None:
        passes.append(int(bitflip(stored, images, budget=budget).table.forwards.iloc[-1]))

    short, long = (timed(lambda n=n: attack(n), device) for n in (1, 1 + flips))
    return (long - short) / flips, (passes[1] - passes[0]) / flips


def compared(width: int, images: torch.Tensor, flips: int, rounds: int) -> dict[str, Any]:
    """Time flips and passes in turn; a row of medians over rounds."""
    stored, device = store(untrained(width, images)), images.device
    stored.model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        labels = stored.model(images).argmax(1)
    found, bounds = [], []
    for turn in range(rounds + 1):  # the first round warms up and is not counted
        seconds, passes = flip_seconds(stored, images, flips)
        with torch.no_grad():
            trying = timed(lambda: [stored.model(images) for _ in stored.layers], device)
        bound = timed(lambda: gradient(stored, images, labels), device)
        bound += (passes - 1) * trying / len(stored.layers)  # the gradient's own is in it already
        if turn:
            found.append(seconds)
            bounds.append(bound)
    ratio = median(ours / theirs for ours, theirs in zip(found, bounds, strict=True))
    row: dict[str, Any] = {"model": f"ResNet18 width {width}", "layers": len(stored.layers)}
    row |= {"s per flip": median(found), "bound: s for its passes": median(bounds)}
    return row | {"ratio": ratio}


def main(
    images: Annotated[int, typer.Option(help="How many images.")] = 16,
    flips: Annotated[int, typer.Option(help="Flips that are timed.")] = 3,
    rounds: Annotated[int, typer.Option(help="Counted rounds.")] = 3,
    widths: Annotated[list[int] | None, typer.Option("--width", help="16 and 64 if none.")] = None,
) -> None:
    """Print the comparison; 128 images, as in the literature, take eight times as long as 16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    noise = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    rows = [compared(width, noise, flips, rounds) for width in widths or (16, 64)]
    print(f"Bit-flip attack, 8 bits, {images} images, {device}")
    print(tabulate(rows, "keys", "github", floatfmt=".3f"))


if __name__ == "__main__":
    typer.run(main)
