"""Activations that are no sites, behind which layers of families would be missing."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from advprune.core.device import device_of
from advprune.models.draws import undisturbed
from advprune.models.spec import sites

RECTIFIERS = {
    getattr(place, name)
    for place in (nn.functional, torch, torch.Tensor)
    for name in (
        *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu"),
        *("mish", "softplus", "hardswish", "hardtanh", "prelu", "rrelu"),
    )
    if hasattr(place, name)
}


@torch.no_grad()
def own_activations(model: nn.Module) -> list[str]:
    """The names of modules that act as activations without being torch's: they have no parts and no
    weights, and map every value on its own by what is no straight line."""
    found = []
    known = {id(part) for site in sites(model).values() for part in site.modules()}
    for name, part in model.named_modules():
        torchs = type(part).__module__.startswith(("torch.", "advprune."))
        if torchs or any(part.children()) or list(part.parameters()) or id(part) in known:
            continue
        x = torch.linspace(-3, 3, 64).view(1, 1, 8, 8)
        try:
            with undisturbed():
                there, back, middle = part(x), part(x.flip(2, 3)), part(x * 0)
                single = torch.equal(there, back.flip(2, 3))
                straight = torch.allclose(there + there.flip(2, 3), 2 * middle, atol=1e-4)
        except Exception:  # it takes other inputs: no activation
            continue
        if single and not straight:
            found.append(name)
    return found


class _Calls(TorchFunctionMode):
    """Notes calls of torch's activation functions, but those inside activation sites."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.depth = 0  # of sites

    def enter(self, *_: Any) -> None:
        self.depth += 1

    def leave(self, *_: Any) -> None:
        self.depth -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.depth and func in RECTIFIERS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def functional_activations(model: nn.Module, image: torch.Tensor) -> list[str]:
    """The activation functions that a pass of one image `[1, C, H, W]` calls outside of modules
    that are activation sites, by name, one for each call."""
    device = device_of(model)
    with undisturbed(device), ExitStack() as hooks, _Calls() as calls:
        for site in sites(model).values():
            hooks.enter_context(site.register_forward_pre_hook(calls.enter))
            hooks.enter_context(site.register_forward_hook(calls.leave))
        model(image.to(device))
    return calls.names
