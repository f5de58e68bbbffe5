"""SAP: activations pruned at random by magnitude and rescaled.

Claim (Dhillon et al., 2018). Pruning activations at random, larger ones less often, makes a
trained network more robust without retraining: 12 points more than the dense network under FGSM at
lambda 1 (as quoted elsewhere; not read in the paper).

Formula. Behind every ReLU, per sample, over the whole map h of a values: `p_j = |h_j| / sum |h|`;
`r = fraction * a` draws with replacement; what was drawn at least once is kept and divided by `q_j
= 1 - (1 - p_j)^r`, so that the mean over draws is h. SAP-100 is fraction 1. q is computed by
`log1p` and `expm1`, since `1 - (1 - p)^r` is 0 in float32 for small p.

Attacks on it. The published gradient holds the factors I/q constant (`backward: constant`); its
variance grows with every layer. `scale` differentiates through q, and `identity` passes over the
layers (BPDA). On the digits at half the budget BPDA breaks far more images than the published
gradient does, with one draw per step or with ten. `{fraction: 2.0, where: conv, form: poisson,
backward: scale}` is what Athalye et al. attacked, which is not SAP as published; the erratum of
Dhillon and Carlini says so and breaks the published form by BPDA. `form: independent` keeps each
value with probability q on its own, which is fast; `multinomial` is the published form.

Source. Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense (ICLR 2018),
algorithm 1; Athalye, Carlini and Wagner, Obfuscated Gradients (ICML 2018), section 5.3.1; Dhillon
and Carlini, Erratum (2020, arXiv 2010.00071).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from advprune.core.attack_settings import RandomBackward
from advprune.core.settings import Settings
from advprune.models.insert import insert, inserted_layer
from advprune.models.spec import LayerSpec
from advprune.models.stochastic import Stochastic
from advprune.pruning.family import Data, Pruned, family, unchanged

Form = Literal["multinomial", "independent", "poisson"]
LARGEST = 1 - 2**-24  # the largest float32 below 1: keeps log1p(-p) finite


class SAP(Settings):
    """fraction: draws per map, as a fraction of its size. where: behind every ReLU or convolution.
    form: `multinomial` draws as published; `independent` keeps each value with the same
    probability, on its own, which is faster; `poisson` uses `1 - exp(-r p)`. backward: see above.
    """

    fraction: float = Field(gt=0, le=100)
    where: Literal["relu", "conv"] = "relu"
    form: Form = "independent"
    backward: RandomBackward = "constant"


def keep_probability(p: torch.Tensor, r: int, form: Form = "multinomial") -> torch.Tensor:
    """q: the probability that a value of share `p` is drawn at least once in `r` draws."""
    if form == "poisson":
        return -torch.expm1(-r * p)
    return -torch.expm1(r * torch.log1p(-p.clamp_max(LARGEST)))


@inserted_layer("sap", SAP)
class StochasticPruning(Stochastic):
    """Keeps the values of each sample's map that r draws by magnitude hit, scaled by 1 / q."""

    def __init__(
        self, fraction: float, form: Form = "independent", backward: str = "constant"
    ) -> None:
        super().__init__(backward)
        self.fraction, self.form = fraction, form

    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        flat = h.flatten(1)  # [N, a]
        r = max(int(self.fraction * flat.shape[1]), 1)
        seen = flat if self.backward == "scale" else flat.detach()
        size, tiny = seen.abs(), torch.finfo(h.dtype).tiny
        p = size / size.sum(1, keepdim=True).clamp_min(tiny)
        q = keep_probability(p, r, self.form)
        if self.form != "multinomial" or self.frozen is not None:
            kept = self.uniform(p.detach()) < q.detach()  # [N, a]
        else:
            share = p.detach()
            empty = share.sum(1, keepdim=True) == 0  # torch cannot draw from a map of zeros
            drawn = torch.multinomial(torch.where(empty, 1.0, share), r, replacement=True)  # [N, r]
            kept = torch.zeros_like(share, dtype=torch.bool).scatter_(1, drawn, True) & (share > 0)
        return (flat * (kept / q.clamp_min(tiny))).view_as(h)  # where q is 0, nothing is kept


@family("SAP", SAP)
def sap(model: nn.Module, setting: SAP, data: Data) -> Pruned:
    """Stochastic activation pruning, behind every ReLU or every convolution."""
    settings = setting.model_dump(exclude={"where"})
    insert(model, LayerSpec(kind="sap", settings=settings, where=setting.where))
    return unchanged(model)
