"""The time of a flip of the bit-flip attack, with what lies before a changed layer computed again.

Progressive bit search tries changes of one layer at a time; `reuse` keeps what comes before it
(attacks/rerun.py). Both forms take turns on the same stored network and images, and find the same
flips. Prints seconds of both and their ratio.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import typer
from tabulate import tabulate
from torch import Tensor, nn

from advprune.attacks import bitflip
from advprune.attacks.stored_bits import store
from advprune.models.checkpoint import build
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec


def untrained(width: int, images: Tensor) -> nn.Module:
    """A ResNet18 of a width on the images' device, whose batch-norm has seen them."""
    shape: dict[str, Any] = {"channels": 3, "classes": 10, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model = build(ModelSpec(architecture="resnet18", width=width, **shape))
    initialize(model, torch.Generator().manual_seed(0))
    model.train().to(images.device)
    with torch.no_grad():
        for _ in range(10):
            model(images)
    return model.eval()


def compared(width: int, images: Tensor, flips: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds; a flip is the difference of a long attack and one of a single flip."""
    stored, found = store(untrained(width, images)), {True: list[float](), False: list[float]()}
    for turn in range(rounds + 1):  # the first round warms up and is not counted
        for reuse, seconds in found.items():
            took = []
            for budget in (1, 1 + flips):
                started = time.perf_counter()
                bitflip(stored, images, budget=budget, reuse=reuse)
                if images.is_cuda:
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - started)
            seconds += [(took[1] - took[0]) / flips] * (turn > 0)
    kept, whole = (median(seconds) for seconds in found.values())
    row = {"model": f"ResNet18 width {width}", "layers": len(stored.layers), "s per flip": kept}
    return row | {"without reuse": whole, "ratio": kept / whole}


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
