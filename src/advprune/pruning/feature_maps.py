"""clamp and round: feature maps clamped to their range on clean images, or rounded.

Claim (nn-prune). Under attack many neurons near the input change a little, and values before the
classifier are abnormally large. Clamping the maps costs a little accuracy and makes mean and sigma
of the last stage (layer4) rise; quantization inside the network does not resist. Rounding the maps
is ours.

Formula. A layer behind every ReLU. clamp: `h = min(max(h, low), high)`, one range per layer, taken
from clean training images: mean ± k sigma over all values of the layer. round: `h = round(h,
decimals)`.

Gradient. Rounding is flat almost everywhere, so an attack that uses its true gradient finds
nothing, however weak the network is. Its backward pass is the identity for every attacker (straight
through: Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018,
section 4.1, BPDA). A clamped value has no gradient either: attacks with `backward: straight`
differentiate as if nothing were clamped.

Source. nn-prune (Kahsolt/adversarial-prune on GitHub, October 2022), conclusions of its README.
"""

import torch
from pydantic import Field
from torch import nn

from advprune.core.device import device_of, full_precision
from advprune.core.errors import UserError
from advprune.core.settings import Settings
from advprune.models.backward import straight_through
from advprune.models.insert import insert, inserted_layer, watched
from advprune.models.spec import LayerSpec, sites
from advprune.pruning.family import Data, Pruned, family, require, unchanged


class ClampMaps(Settings):
    """clamp: a layer's maps are kept inside mean ± `sigmas` * std of their values on clean training
    images, drawn from the run's seed.
    """

    sigmas: float = Field(gt=0, le=1e6)
    images: int = Field(default=512, ge=1)


class RoundMaps(Settings):
    """round: a layer's maps are rounded to `decimals` decimals."""

    decimals: int = Field(ge=0, le=6)


@inserted_layer("clamp")
class Clamp(nn.Module):
    """`min(max(h, low), high)` per layer; the gradient is its own or the identity."""

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


@inserted_layer("round", RoundMaps)
class Round(nn.Module):
    """`round(h, decimals)`; the gradient passes straight through."""

    declares_rule = True

    def __init__(self, decimals: int) -> None:
        super().__init__()
        self.decimals = decimals

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return straight_through(h, h.round(decimals=self.decimals))


@family("clamp", ClampMaps)
@torch.no_grad()
def clamp_maps(model: nn.Module, setting: ClampMaps, data: Data) -> Pruned:
    """Clamp every feature map to the range that clean training images use."""
    chosen = torch.randperm(len(require(data).images), generator=data.generator)
    images = data.images[chosen[: setting.images].sort().values]
    sums: dict[str, list[tuple[int, float, float]]] = {name: [] for name in sites(model)}

    def note(name: str, module: nn.Module, inputs: object, h: torch.Tensor) -> None:
        flat = h.flatten()
        squares = float(flat.double().square().sum())
        sums[name].append((len(flat), float(flat.sum(dtype=torch.float64)), squares))

    with watched(sites(model), note), full_precision():
        for part in images.split(64):
            model(part.to(device_of(model)))
    if not any(sums.values()):
        raise UserError("the network calls none of its activation modules")
    for name, layer in insert(model, LayerSpec(kind="clamp")).items():
        if not sums[name]:  # never called: there is nothing to clamp
            continue
        count, total, squares = map(sum, zip(*sums[name], strict=True))
        mean = total / count
        reach = setting.sigmas * max(squares / count - mean**2, 0.0) ** 0.5
        layer.low.fill_(mean - reach)
        layer.high.fill_(mean + reach)
    return unchanged(model)


@family("round", RoundMaps)
def round_maps(model: nn.Module, setting: RoundMaps, data: Data) -> Pruned:
    """Round every feature map to a number of decimals."""
    insert(model, LayerSpec(kind="round", settings=setting.model_dump()))
    return unchanged(model)
