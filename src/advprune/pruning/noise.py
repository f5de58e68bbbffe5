"""Controls of SAP: dropout at test time, noise on activations or weights, largest weights kept.

Claim (Dhillon et al., 2018, as baselines). Is it SAP's rule that helps, or any randomness?

Formula. Behind every ReLU, in every pass: dropout sets an activation to zero with probability
`rate` and divides the others by `1 - rate`, in evaluation mode too; RNA takes `h + N(0, sigma²)`,
RSA `h N(1, sigma²)`. On the weight of every convolution and linear layer, drawn once per forward
pass for the whole batch: RNW takes `W + N(0, sigma²)`, RSW `W N(1, sigma²)`. DWP is not random: it
keeps the share `keep` of largest magnitude of each such weight tensor; ties go by position.
Randomized models are scored over `attack.score_draws` passes.

Source. Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense (ICLR 2018),
baselines; Srivastava et al., Dropout (JMLR, 2014).
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from advprune.core.attack_settings import RandomBackward
from advprune.models.checkpoint import inserted_layer
from advprune.models.insert import insert
from advprune.models.spec import LayerSpec, Where
from advprune.models.stochastic import Stochastic
from advprune.pruning.family import Data, Pruned, Setting, family, unchanged
from advprune.pruning.masks import clear, everywhere, first


class DropoutSetting(Setting):
    """dropout: each activation is zero with probability `rate`, the others are scaled up."""

    shorthand: ClassVar[str | None] = "rate"
    rate: float = Field(ge=0, lt=1)
    backward: RandomBackward = "constant"


class NoiseSetting(Setting):
    """RNA, RSA, RNW, RSW: Gaussian noise of standard deviation `sigma`."""

    shorthand: ClassVar[str | None] = "sigma"
    sigma: float = Field(ge=0, le=1e6)
    backward: RandomBackward = "constant"


class DWP(Setting):
    """DWP: of each convolution's and linear layer's weights, the largest share `keep` is kept."""

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


LAYERS = {"dropout": Dropout, "added_noise": AddedNoise, "scaled_noise": ScaledNoise}


@family("RNA", NoiseSetting, kind="added_noise")
@family("RSA", NoiseSetting, kind="scaled_noise")
@family("RNW", NoiseSetting, kind="added_noise", where="weight")
@family("RSW", NoiseSetting, kind="scaled_noise", where="weight")
@family("dropout", DropoutSetting, kind="dropout")
def noise(
    model: nn.Module,
    setting: DropoutSetting | NoiseSetting,
    data: Data,
    kind: str,
    where: Where = "relu",
) -> Pruned:
    """Activations dropped, or Gaussian noise added to activations (RNA) or weights (RNW), or
    multiplied (RSA, RSW)."""
    insert(model, LAYERS[kind], LayerSpec(kind=kind, settings=setting.model_dump(), where=where))
    return unchanged(model)


@family("DWP", DWP)
def dwp(model: nn.Module, setting: DWP, data: Data) -> Pruned:
    """The largest weights of each layer are kept, the others become zero; ties: the first stay."""
    removed = {
        name: ~first(weight.abs(), round(setting.keep * weight.numel()), "largest")
        for name, weight in model.named_parameters()
        if weight.ndim > 1
    }
    clear(model, removed)
    return Pruned(model, everywhere(model, removed))
