"""dropout and RNA: the controls of SAP, activations dropped or noise added at test time.

Claim (Dhillon et al., 2018). SAP protects better than dropout at test time. Dropout and noise on
activations are its controls: is it SAP's rule that helps, or any randomness?

Formula. Behind every ReLU, in every pass: dropout sets an activation to zero with probability
`rate` and divides the others by `1 - rate`; RNA takes `h + N(0, sigma²)`. Randomized models are
scored over `attack.score_draws` passes.

Source. Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense (ICLR 2018),
baselines; Srivastava et al., Dropout (JMLR, 2014).
"""

import torch
from pydantic import Field
from torch import nn

from advprune.core.attack_settings import RandomBackward
from advprune.core.settings import Settings
from advprune.models.insert import insert, inserted_layer
from advprune.models.spec import LayerSpec
from advprune.models.stochastic import Stochastic
from advprune.pruning.family import Data, Pruned, family, unchanged


class DropoutSetting(Settings):
    """dropout: each activation is zero with probability `rate`, the others are scaled up."""

    rate: float = Field(ge=0, lt=1)
    backward: RandomBackward = "constant"


class NoiseSetting(Settings):
    """RNA: Gaussian noise of standard deviation `sigma`."""

    sigma: float = Field(ge=0, le=1e6)
    backward: RandomBackward = "constant"


@inserted_layer("dropout", DropoutSetting)
class Dropout(Stochastic):
    """`h I / (1 - rate)`, I independent Bernoulli(1 - rate)."""

    def __init__(self, rate: float, backward: str = "constant") -> None:
        super().__init__(backward)
        self.rate = rate

    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        kept = self.uniform(h) >= self.rate
        return h * kept / (1 - self.rate)


@inserted_layer("added_noise", NoiseSetting)
class AddedNoise(Stochastic):
    """`h + N(0, sigma²)`."""

    def __init__(self, sigma: float, backward: str = "constant") -> None:
        super().__init__(backward)
        self.sigma = sigma

    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.sigma * self.normal(h)


@family("dropout", DropoutSetting, kind="dropout")
@family("RNA", NoiseSetting, kind="added_noise")
def noise(model: nn.Module, setting: Settings, data: Data, kind: str) -> Pruned:
    """Activations dropped, or Gaussian noise added to them."""
    insert(model, LayerSpec(kind=kind, settings=setting.model_dump()))
    return unchanged(model)
