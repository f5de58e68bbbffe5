"""clamp and round: feature maps clamped to their range on clean images, or rounded.

Claim (nn-prune). The project inspects feature maps under attack: small changes to many neurons near
the input, abnormally large values before the classifier, and a mean and sigma that rise. It tries
clamping and rounding the maps and concludes that quantizing them does not help.

Formula. A layer behind every ReLU. clamp: `h = min(max(h, low), high)`, one range per layer, taken
from clean training images: mean ± k sigma over all values of the layer, or a percentile at both
tails. round: `h = round(h, decimals)`.

Gradient. Rounding is flat almost everywhere, so an attack that uses its true gradient finds
nothing, however weak the network is. Its backward pass is the identity for every attacker (straight
through: Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018,
section 4.1, BPDA). A clamped value has no gradient either: attacks with `backward: straight` pass
over the clamp.

Source. nn-prune (Kahsolt/adversarial-prune on GitHub, October 2022), clamped and rounded maps.
"""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from advprune.core.device import device_of
from advprune.models.backward import straight_through
from advprune.models.checkpoint import inserted_layer
from advprune.models.insert import insert
from advprune.models.spec import LayerSpec, sites
from advprune.pruning.family import Data, Pruned, Setting, family, require, unchanged

QUANTILE_SAMPLE = 1 << 20  # values a layer: torch.quantile takes at most 2^24


class ClampMaps(Setting):
    """clamp: a layer's maps are kept inside a range found on clean training images.

    Give `sigmas` (mean ± sigmas * std) or `percentile` (of the values, both tails), not both.
    """

    shorthand: ClassVar[str | None] = "sigmas"
    sigmas: float | None = Field(default=None, gt=0, le=1e6)
    percentile: float | None = Field(default=None, gt=50, le=100)
    images: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> "ClampMaps":
        if (self.sigmas is None) == (self.percentile is None):
            raise ValueError("give either sigmas or percentile")
        return self


class RoundMaps(Setting):
    """round: a layer's maps are rounded to `decimals` decimals."""

    shorthand: ClassVar[str | None] = "decimals"
    decimals: int = Field(ge=0, le=6)


@inserted_layer("clamp")
class Clamp(nn.Module):
    """`min(max(h, low), high)` with one range a layer; its gradient is its own, or the identity."""

    rules = ("straight",)
    low: torch.Tensor
    high: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backward = "own"
        limits = torch.finfo(torch.float32)
        self.register_buffer("low", torch.tensor(limits.min))
        self.register_buffer("high", torch.tensor(limits.max))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        clamped = h.clamp(self.low, self.high)
        return straight_through(h, clamped) if self.backward == "straight" else clamped


@inserted_layer("round")
class Round(nn.Module):
    """`round(h, decimals)`; the gradient passes straight through."""

    def __init__(self, decimals: int) -> None:
        super().__init__()
        self.decimals = decimals

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return straight_through(h, h.round(decimals=self.decimals))


def calibrate(
    model: nn.Module, images: torch.Tensor, setting: ClampMaps, batch: int = 64
) -> dict[str, tuple[float, float]]:
    """The clamp range of each activation site, from images `[N, C, H, W]` in [0, 1].

    Percentiles are those of an even sample of the values.
    """
    batches = images.split(batch)
    ranges = {name: _Range(QUANTILE_SAMPLE // len(batches)) for name in sites(model)}
    handles = [site.register_forward_hook(ranges[name]) for name, site in sites(model).items()]
    try:
        with torch.no_grad():
            for part in batches:
                model(part.to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return {name: found.limits(setting) for name, found in ranges.items()}


class _Range:
    """A forward hook that keeps a layer's sums and an even sample of its values."""

    def __init__(self, share: int) -> None:
        self.share = share  # values to keep a batch
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.values: list[torch.Tensor] = []

    def __call__(self, module: nn.Module, inputs: object, h: torch.Tensor) -> None:
        flat = h.detach().flatten()
        self.count += flat.numel()
        self.total += float(flat.sum(dtype=torch.float64))
        self.squares += float(flat.double().square().sum())
        self.values.append(flat[:: max(1, flat.numel() // self.share)].clone())

    def limits(self, setting: ClampMaps) -> tuple[float, float]:
        """The clamp range that a setting asks for."""
        if setting.percentile is not None:
            tail = setting.percentile / 100
            low, high = torch.quantile(torch.cat(self.values), torch.tensor([1 - tail, tail]))
            return float(low), float(high)
        mean = self.total / self.count
        reach = (setting.sigmas or 0.0) * max(self.squares / self.count - mean**2, 0.0) ** 0.5
        return mean - reach, mean + reach


@family("clamp", ClampMaps)
def clamp_maps(
    model: nn.Module, setting: ClampMaps, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Clamp every feature map to the range that clean training images use."""
    images = require(data).images
    chosen = torch.randperm(len(images), generator=generator)[: setting.images]
    ranges = calibrate(model, images[chosen.sort().values], setting)
    for name, layer in insert(model, Clamp, LayerSpec(kind="clamp")).items():
        layer.low.fill_(ranges[name][0])
        layer.high.fill_(ranges[name][1])
    return unchanged(model)


@family("round", RoundMaps)
def round_maps(
    model: nn.Module, setting: RoundMaps, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Round every feature map to a number of decimals."""
    insert(model, Round, LayerSpec(kind="round", settings=setting.model_dump()))
    return unchanged(model)
