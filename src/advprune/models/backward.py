"""Backward rules: what an attack takes the derivative of a layer to be.

A layer that draws, rounds, clamps or takes signs hides its gradient. Such a layer has the attribute
`backward`, the rule that is used, and names the rules it knows in `rules`. Attacks choose one on
their private copies; layers that do not know it stay as they are. Two rules are not of layers but
of a whole network: `parent`, the gradient of the model that this one was made from, and `ensemble`,
that of the mean logits of both. The forward pass is the model's own whatever the rule is.

- `constant`, `scale`, `identity`: of layers that draw, see stochastic.py. Identity: the layer is
  passed over (BPDA: Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of
  Security, 2018, section 4.1).
- `straight`: clamped maps and signs are passed over likewise. A rule of its own: where their own
  derivative leads somewhere, it mostly leads further.
- `wide`: a slope of the sign that is not zero before two standard deviations (binary.py).
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
