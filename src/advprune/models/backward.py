"""Backward rules: what an attack takes the derivative of a layer to be.

A layer that hides its gradient names the rules it knows in `rules`; its attribute `backward` is the
one that is used, which attacks choose on their private copies. `constant`, `scale` and `identity`
are of layers that draw (stochastic.py); `identity` and `straight`, of clamped maps and signs, pass
over the layer (BPDA: Athalye et al., 2018, section 4.1); `wide` is a wider slope of the sign
(binary.py). `parent`, the gradient of the model that this one was made from, and `ensemble`, that
of the mean logits of both, are of whole networks.
"""

from typing import get_args

import torch
from torch import nn

from advprune.core.attack_settings import Backward

RULES: tuple[str, ...] = get_args(Backward)
OF_NETWORKS = ("parent", "ensemble")


def set_backward(model: nn.Module, rule: str) -> None:
    """Choose the backward rule of every layer that knows it, in place: for private copies."""
    if rule not in RULES:
        raise ValueError(f"backward is {rule!r}; allowed: {', '.join(RULES)}")
    for module in model.modules():
        if rule in getattr(module, "rules", ()):
            module.backward = rule  # type: ignore[assignment]


def straight_through(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value`, exactly, with the derivative of `x`."""
    return value.detach() + (x - x.detach())
