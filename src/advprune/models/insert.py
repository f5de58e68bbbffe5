"""Layers that families put into a network: behind a ReLU, or behind a convolution."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.models.activations import own_activations
from advprune.models.spec import LayerSpec, ModelSpec, Site, Where, attach, sites

NEEDED: dict[Where, str] = {
    "relu": "no activation that is a module (nn.ReLU and the like, not F.relu) to stand behind",
    "conv": "no convolution (nn.Conv2d) to stand behind",
}


class WrappedConv2d(nn.Conv2d):
    """A convolution with a layer behind it; its tensors keep their names."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_output: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        return out if self.on_output is None else self.on_output(out)


def places(model: nn.Module, where: Where) -> list[str]:
    """The modules that layers of that kind of place belong to, by name."""
    if where == "relu":
        return list(sites(model))
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def inserted(model: nn.Module) -> Counter[str]:
    """How many layers families put in, by the kind of place."""
    found: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, Site):
            found["relu"] += len(module) - 1
        found["conv"] += getattr(module, "on_output", None) is not None
    return found


def insert(model: nn.Module, kind: Callable[..., nn.Module], spec: LayerSpec) -> dict[str, Any]:
    """Put a layer of that kind at all places of the spec, in place, and let the model's spec say
    so; returns the layers by place.

    UserError where there is no place, or one that no layer can be put at, or where the layers would
    stand behind some activations only.
    """
    device = device_of(model)
    layers = {name: kind(**spec.settings).to(device) for name in places(model, spec.where)}
    if not layers:
        raise UserError(f"the network has {NEEDED[spec.where]}; leave it out")
    if spec.where == "relu" and (others := own_activations(model)):
        raise UserError(
            f"it would act at {len(layers)} of {len(layers) + len(others)} activations: "
            f"{others[0]} is a {type(model.get_submodule(others[0])).__name__}; derive that class "
            "from the nearest of torch's, such as nn.ReLU"
        )
    for name, layer in layers.items():
        put(model, spec.where, name, layer)
    known = getattr(model, "spec", None)
    if isinstance(known, ModelSpec):
        attach(model, known.model_copy(update={"layers": (*known.layers, spec)}))
    return layers


def put(model: nn.Module, where: Where, name: str, layer: nn.Module) -> None:
    """Put a layer at the place `name`."""
    module = model.get_submodule(name)
    if where == "relu":
        site = module if isinstance(module, Site) else Site(module).train(module.training)
        site.append(layer)
        model.set_submodule(name, site)
        return
    wrapped = _wrapped(name, module)
    before = wrapped.on_output
    wrapped.on_output = layer if before is None else nn.Sequential(before, layer)
    model.set_submodule(name, wrapped)


def _wrapped(name: str, module: nn.Module) -> WrappedConv2d:
    """The module itself where it is wrapped already, else its wrapped form with its tensors."""
    if isinstance(module, WrappedConv2d):
        return module
    if type(module) is not nn.Conv2d:  # a derived class's own forward pass would be lost
        raise UserError(
            f"{name} is a {type(module).__name__}; layers can be put behind nn.Conv2d, but not "
            "behind what is derived from it"
        )
    wrapped = WrappedConv2d(
        *(module.in_channels, module.out_channels, module.kernel_size, module.stride),
        *(module.padding, module.dilation, module.groups, True, module.padding_mode),
    )
    wrapped.weight, wrapped.bias = module.weight, module.bias
    return wrapped.train(module.training)
