"""Half of the filters set to zero or removed: time, size and arithmetic.

The three networks take turns, round by round, and ratios to the dense one are taken within each
round, so that drift in the machine's speed does not matter. Files are written to a temporary folder
to measure their size.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import typer
from bitflips import untrained
from rich.console import Console
from rich.table import Table
from torch import nn

from advprune.models.card import macs_of
from advprune.models.checkpoint import save_model
from advprune.pruning import prune


@torch.no_grad()
def seconds(model: nn.Module, images: torch.Tensor) -> float:
    """How long one forward pass takes."""
    started = time.perf_counter()
    model(images)
    return time.perf_counter() - started


def size_of(model: nn.Module) -> int:
    """Bytes of the model's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, path)
        return path.stat().st_size


def main(
    width: Annotated[int, typer.Option(help="Channels of the first stage.")] = 64,
    images: Annotated[int, typer.Option(help="Images a pass.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often all three are timed.")] = 7,
) -> None:
    """Print each network's time as a ratio to the dense one, its arithmetic and its file."""
    x = torch.rand(max(images, 64), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dense = untrained(width, x)
    models = {
        "dense": dense,
        "half of the filters zero": prune("filters", dense, 0.5).model,
        "half of the filters out": prune("filters", dense, {"fraction": 0.5, "small": True}).model,
    }
    for model in models.values():
        seconds(model, x[:images])
    times = [{name: seconds(m, x[:images]) for name, m in models.items()} for _ in range(rounds)]
    table = Table(title=f"ResNet18 of width {width}, {images} images, {rounds} rounds")
    for column in ("network", "time against dense", "MACs an image", "file, kB"):
        table.add_column(column)
    for name, model in models.items():
        ratio = median(one[name] / one["dense"] for one in times)
        row = (f"{ratio:.2f}", f"{macs_of(model, (3, 32, 32)):,}", f"{size_of(model) / 1000:,.0f}")
        table.add_row(name, *row)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
