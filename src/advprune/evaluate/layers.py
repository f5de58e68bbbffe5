"""Where an attack acts: clean against adversarial feature maps, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import nn

from advprune.core.device import device_of
from advprune.models.insert import WrappedConv2d, WrappedLinear
from advprune.models.spec import Site
from advprune.models.stochastic import frozen_copy

SAMPLE = 1 << 14  # values a batch and layer, for the distance between the distributions


@dataclass
class _Sums:
    """Running sums over batches of one layer's output, clean and adversarial."""

    count: int = 0
    difference: float = 0.0
    largest: float = 0.0
    squared_difference: float = 0.0
    sums: dict[str, float] = field(default_factory=lambda: {"clean": 0.0, "adv": 0.0})
    squares: dict[str, float] = field(default_factory=lambda: {"clean": 0.0, "adv": 0.0})
    distance: float = 0.0
    batches: int = 0

    def add(self, clean: torch.Tensor, adv: torch.Tensor) -> None:
        """Take in one batch: outputs `[N, ...]` of the same layer."""
        clean, adv = clean.flatten().double(), adv.flatten().double()
        change = (adv - clean).abs()
        self.count += clean.numel()
        self.difference += float(change.sum())
        self.largest = max(self.largest, float(change.max()))
        self.squared_difference += float(change.square().sum())
        for side, values in (("clean", clean), ("adv", adv)):
            self.sums[side] += float(values.sum())
            self.squares[side] += float(values.square().sum())
        self.distance += wasserstein(clean, adv)
        self.batches += 1

    def row(self) -> dict[str, float]:
        """The layer's figures."""
        moments = {side: self._moments(side) for side in ("clean", "adv")}
        sigma = max(moments["clean"][1], 1e-12)
        return {
            "mean_difference": self.difference / self.count,
            "max_difference": self.largest,
            "relative_difference": (self.squared_difference / max(self.squares["clean"], 1e-24))
            ** 0.5,
            "clean_mean": moments["clean"][0],
            "adv_mean": moments["adv"][0],
            "clean_sigma": moments["clean"][1],
            "adv_sigma": moments["adv"][1],
            "distance": self.distance / self.batches / sigma,
        }

    def _moments(self, side: str) -> tuple[float, float]:
        mean = self.sums[side] / self.count
        return mean, max(self.squares[side] / self.count - mean**2, 0.0) ** 0.5


def wasserstein(first: torch.Tensor, second: torch.Tensor) -> float:
    """1-Wasserstein distance of two equally large samples: mean |difference of sorted values|.

    Larger tensors are thinned evenly to `SAMPLE` values first, at the same places in both.
    """
    thin = max(1, first.numel() // SAMPLE)
    return float((first[::thin].sort().values - second[::thin].sort().values).abs().mean())


def watched(model: nn.Module) -> dict[str, nn.Module]:
    """The layers looked at, by name: modules without children, and as a whole activation sites and
    layers that something was put on or behind.

    An empty Sequential (the identity of a shortcut) is no layer.
    """
    kinds = (Site, WrappedConv2d, WrappedLinear)
    whole = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    found = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{one}.") for one in whole)
        plain = not any(module.children()) and not isinstance(module, nn.Sequential)
        if name in whole or (plain and not inside):
            found[name] = module
    return found


def _maps(output: Any, batch: int) -> torch.Tensor | None:
    """A layer's output, the first of several, if it begins with the batch or its images' parts."""
    found = output[0] if isinstance(output, tuple) and output else output
    is_maps = isinstance(found, torch.Tensor) and found.is_floating_point() and found.ndim
    return found if is_maps and found.numel() and len(found) % batch == 0 else None


@torch.no_grad()
def where(
    model: nn.Module, images: torch.Tensor, adv: torch.Tensor, batch: int = 64
) -> pd.DataFrame:
    """Compare every layer's output on clean and adversarial images, float `[N, C, H, W]`.

    Returns one row per layer in the order of the forward pass: depth (0 is the normalized input),
    layer, kind; mean_difference and max_difference of |adv - clean|; relative_difference, the L2
    norm of the difference over that of the clean maps; mean and sigma of both; distance, the
    1-Wasserstein distance between the distributions of values in units of the clean sigma.
    Random layers draw once, the same for both, so that the difference is the attack's. A layer of a
    foreign network has a row if its output begins with the batch.
    """
    model = frozen_copy(model)
    device, found = device_of(model), watched(model)
    sums: dict[str, _Sums] = {}
    total = 0

    def hook(name: str) -> Callable[[nn.Module, object, Any], None]:
        def record(module: nn.Module, inputs: object, output: Any) -> None:
            if (maps := _maps(output, total)) is not None:
                clean, attacked = maps.chunk(2)
                sums.setdefault(name, _Sums()).add(clean, attacked)

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in found.items()]
    try:
        for clean, attacked in zip(images.split(batch), adv.split(batch), strict=True):
            total = 2 * len(clean)
            model(torch.cat([clean, attacked]).to(device))
    finally:
        for handle in handles:
            handle.remove()
    rows = [
        {"depth": depth, "layer": name, "kind": type(found[name]).__name__} | sums[name].row()
        for depth, name in enumerate(sums)
    ]
    return pd.DataFrame(rows)
