"""Controls of SAP: dropout at test time, noise on activations or weights, largest weights kept.

Claim (Dhillon et al., 2018, as baselines). Is it SAP's rule that helps, or any randomness?

Formula. Behind every ReLU, in every pass: dropout sets an activation to zero with probability
`rate` and divides the others by `1 - rate`, in evaluation mode too; RNA takes `h + N(0, sigma²)`,
RSA `h N(1, sigma²)`. On the weight of every convolution and linear layer, drawn once per forward
pass for the whole batch: RNW takes `W + N(0, sigma²)`, RSW `W N(1, sigma²)`. DWP is not random: it
keeps the share `keep` of largest magnitude of each such weight, of equal ones the first.
Randomized models are scored over `attack.score_draws` passes.

Source. Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense (ICLR 2018),
baselines; Srivastava et al., Dropout (JMLR, 2014).
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from advprune.core.attack_settings import Backward
from advprune.models.checkpoint import inserted_layer
from advprune.models.spec import LayerSpec
from advprune.models.stochastic import Stochastic
from advprune.pruning.family import Data, Pruned, Setting, family
from advprune.pruning.sap import everywhere


class DropoutSetting(Setting):
    """dropout: each activation is zero with probability `rate`, the others are scaled up."""

    shorthand: ClassVar[str | None] = "rate"
    rate: float = Field(ge=0, lt=1)
    backward: Backward = "constant"


class NoiseSetting(Setting):
    """RNA, RSA, RNW, RSW: Gaussian noise of standard deviation `sigma`."""

    shorthand: ClassVar[str | None] = "sigma"
    sigma: float = Field(ge=0, le=1e6)
    backward: Backward = "constant"


class DWP(Setting):
    """DWP: of each convolution's and linear layer's weight, the largest share `keep` stays."""

    shorthand: ClassVar[str | None] = "keep"
    keep: float = Field(gt=0, le=1)


@inserted_layer("dropout")
class Dropout(Stochastic):
    """`h I / (1 - rate)`, I independent Bernoulli(1 - rate)."""

    def __init__(self, rate: float, backward: str = "constant") -> None:
        super().__init__(backward)
        self.rate = rate

    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        kept = self.uniform(h) >= self.rate
        return h * kept / (1 - self.rate)


@inserted_layer("added_noise")
class AddedNoise(Stochastic):
    """`h + N(0, sigma²)`."""

    def __init__(self, sigma: float, backward: str = "constant") -> None:
        super().__init__(backward)
        self.sigma = sigma

    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.sigma * self.normal(h)


@inserted_layer("scaled_noise")
class ScaledNoise(AddedNoise):
    """`h * N(1, sigma²)`."""

    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        return h * (1 + self.sigma * self.normal(h))


@family("dropout", DropoutSetting)
def dropout(
    model: nn.Module, setting: DropoutSetting, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Dropout behind every ReLU that stays on."""
    return everywhere(model, LayerSpec(kind="dropout", settings=setting.model_dump()), Dropout)


@family("RNA", NoiseSetting)
def rna(
    model: nn.Module, setting: NoiseSetting, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Noise added to activations."""
    spec = LayerSpec(kind="added_noise", settings=setting.model_dump())
    return everywhere(model, spec, AddedNoise)


@family("RSA", NoiseSetting)
def rsa(
    model: nn.Module, setting: NoiseSetting, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Noise multiplied with activations."""
    spec = LayerSpec(kind="scaled_noise", settings=setting.model_dump())
    return everywhere(model, spec, ScaledNoise)


@family("RNW", NoiseSetting)
def rnw(
    model: nn.Module, setting: NoiseSetting, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Noise added to weights."""
    spec = LayerSpec(kind="added_noise", settings=setting.model_dump(), where="weight")
    return everywhere(model, spec, AddedNoise)


@family("RSW", NoiseSetting)
def rsw(
    model: nn.Module, setting: NoiseSetting, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Noise multiplied with weights."""
    spec = LayerSpec(kind="scaled_noise", settings=setting.model_dump(), where="weight")
    return everywhere(model, spec, ScaledNoise)


@family("DWP", DWP)
def dwp(model: nn.Module, setting: DWP, data: Data | None, generator: torch.Generator) -> Pruned:
    """The largest weights of each layer are kept, the others become zero; ties: the first stay."""
    changed = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            changed[name] = torch.zeros_like(parameter, dtype=torch.bool)
            if parameter.ndim > 1:
                drop = parameter.numel() - round(setting.keep * parameter.numel())
                order = parameter.abs().flatten().argsort(descending=True, stable=True)
                smallest = order[parameter.numel() - drop :]
                changed[name].view(-1)[smallest] = True
                parameter.masked_fill_(changed[name], 0.0)
    return Pruned(model, changed)
