"""Planted models whose gradients mislead attacks: the verdict must not call them reliable.

Shared by the tests and by bench/verdict.py. `known` is the network that an attacker who knows the
trick differentiates; it tells how robust the planted model is in truth.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Around(nn.Module):
    """A network with something done to its images, its logits or its gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def known(self) -> nn.Module:
        """What an attacker who knows the trick differentiates."""
        return self.model


# --- Written before the checks of this version of the verdict -----------------------------------


class Saturated(Around):
    """Logits so large that the cross-entropy has no gradient in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e4 * self.model(x)


class Rounded(Around):
    """Pixels rounded to 16 levels, and no gradient through that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model((x * 15).round() / 15)


class _Astray(torch.autograd.Function):
    """The identity, with a gradient of the wrong sign."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return -gradients[0]


class Backwards(Around):
    """Right values, and a gradient of the wrong sign."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(_Astray.apply(x))


class Noisy(Around):
    """Noise that is drawn from the image itself: another one for each point an attack visits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.sin(1e5 * (x.detach() + x.detach().mean((1, 2, 3), keepdim=True)))
        return self.model(x + 0.15 * noise)


class Tempered(Around):
    """A softmax at a low temperature in the place of logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (30 * self.model(x)).softmax(1)


class _Coarse(nn.Module):
    """ReLU with values rounded to sixteenths of the largest, and no gradient through that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.detach().amax().clamp_min(1e-6) / 15
        return (x.relu() / scale).round() * scale


class Quantized(Around):
    """Rounded activations without a differentiable twin."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.rounded = copy.deepcopy(model)
        for name in [name for name, m in model.named_modules() if isinstance(m, nn.ReLU)]:
            self.rounded.set_submodule(name, _Coarse())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rounded(x)


class Detached(Around):
    """The gradient passes through the upper half of the image alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        upper, lower = x.chunk(2, dim=2)
        return self.model(torch.cat([upper, lower.detach()], dim=2))


class _Mixed(torch.autograd.Function):
    """The identity; to the gradient is added one of a share of its size, in a fixed direction."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, share: float) -> torch.Tensor:
        ctx.share = share
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (g,) = gradients
        fixed = torch.randn(g.shape[1:], generator=torch.Generator().manual_seed(0)).to(g)
        length = g.flatten(1).norm(dim=1) / fixed.norm()
        return g + ctx.share * length.view(-1, 1, 1, 1) * fixed, None


class PartlyWrong(Around):
    """The true gradient plus a wrong one of a `share` of its length."""

    def __init__(self, model: nn.Module, share: float = 1 / 3) -> None:
        super().__init__(model)
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(_Mixed.apply(x, self.share))


def half_wrong(model: nn.Module) -> PartlyWrong:
    """The true gradient plus a wrong one as long."""
    return PartlyWrong(model, 1.0)


# By name: how it is made, and of which dense network.
BEFORE: dict[str, tuple[Callable[[nn.Module], Around], str]] = {
    "saturated logits": (Saturated, "standard"),
    "rounded input": (Rounded, "standard"),
    "wrong sign": (Backwards, "standard"),
    "noise of the image": (Noisy, "standard"),
    "low temperature": (Tempered, "standard"),
    "quantized without a twin": (Quantized, "standard"),
    "detached half": (Detached, "standard"),
    "gradient a third wrong": (PartlyWrong, "robust"),
    "gradient half wrong": (half_wrong, "robust"),
}
