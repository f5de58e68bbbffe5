"""Layers that families put into a network, behind a ReLU or behind a convolution, and what passes
of a network show: layers, functions, activations that are no sites."""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn
from torch.overrides import TorchFunctionMode

from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.core.settings import parse
from advprune.models.spec import LayerSpec, ModelSpec, Site, Where, attach, sites
from advprune.models.stochastic import undisturbed

LayerFactory = Callable[..., nn.Module]
_LAYERS: dict[str, tuple[LayerFactory, type[BaseModel] | None]] = {}
NEEDED: dict[Where, str] = {
    "relu": "no activation that is a module (nn.ReLU and the like, not F.relu) to stand behind",
    "conv": "no convolution (nn.Conv2d) to stand behind",
}

RECTIFIERS = {
    getattr(place, name)
    for place in (nn.functional, torch, torch.Tensor)
    for name in (
        *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu"),
        *("mish", "softplus", "hardswish", "hardtanh", "prelu", "rrelu"),
    )
    if hasattr(place, name)
}


def inserted_layer(
    kind: str, settings: type[BaseModel] | None = None
) -> Callable[[LayerFactory], LayerFactory]:
    """Register a layer that families insert. settings: what those in a header are checked by."""

    def register(factory: LayerFactory) -> LayerFactory:
        _LAYERS[kind] = factory, settings
        return factory

    return register


def layer_of(spec: LayerSpec) -> nn.Module:
    """One layer of a spec; families register theirs when their package is imported. UserError where
    there is no such kind, or it does not take these settings."""
    if spec.kind not in _LAYERS:
        importlib.import_module("advprune.pruning")
    if spec.kind not in _LAYERS:
        raise UserError(f"the checkpoint uses layers of an unknown kind {spec.kind!r}")
    factory, settings = _LAYERS[spec.kind]
    if settings is not None:
        parse(settings, spec.settings, f"the spec's layers of kind {spec.kind!r}")
    try:
        layer = factory(**spec.settings)
        sample = torch.ones(1, 1, 1, 1)
        if not sample.is_meta:
            layer(sample)
        return layer
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the spec's layers of kind {spec.kind!r}: {error}") from error


class WrappedConv2d(nn.Conv2d):
    """A convolution with a layer behind it; its tensors keep their names."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_output: nn.Module | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        out = super().forward(input)
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


def insert(model: nn.Module, spec: LayerSpec) -> dict[str, Any]:
    """Put a layer at all places of the spec, in place, and let the model's spec say so; returns the
    layers by place. UserError where there is no place, or one that no layer can be put at."""
    device = device_of(model)
    layers = {name: layer_of(spec).to(device) for name in places(model, spec.where)}
    if not layers:
        raise UserError(f"the network has {NEEDED[spec.where]}; leave it out")
    for name, layer in layers.items():
        put(model, spec.where, name, layer)
    known = getattr(model, "spec", None)
    if isinstance(known, ModelSpec):
        attach(model, known.model_copy(update={"layers": (*known.layers, spec)}))
    return layers


def put(model: nn.Module, where: Where, name: str, layer: nn.Module) -> None:
    """Put a layer at the place `name`; UserError where a convolution of a derived class is there,
    whose own forward pass would be lost."""
    module = model.get_submodule(name)
    if where == "relu":
        site = module if isinstance(module, Site) else Site(module).train(module.training)
        site.append(layer)
        model.set_submodule(name, site)
        return
    if isinstance(module, WrappedConv2d):
        before = module.on_output
        module.on_output = layer if before is None else nn.Sequential(before, layer)
        return
    if type(module) is not nn.Conv2d:
        raise UserError(
            f"{name} is a {type(module).__name__}; layers can be put behind nn.Conv2d, but not "
            "behind what is derived from it"
        )
    wrapped = WrappedConv2d(
        *(module.in_channels, module.out_channels, module.kernel_size, module.stride),
        *(module.padding, module.dilation, module.groups, True, module.padding_mode),
    ).train(module.training)
    wrapped.weight, wrapped.bias, wrapped.on_output = module.weight, module.bias, layer
    model.set_submodule(name, wrapped)


@contextmanager
def watched(layers: Mapping[str, nn.Module], look: Callable[..., None]) -> Iterator[None]:
    """Inside, `look(name, layer, inputs, output)` is called after every pass of a layer; what was
    given by keyword is among the inputs, in the order of `forward`."""

    def seen(name: str, layer: nn.Module, inputs: Any, named: dict[str, Any], out: Any) -> None:
        look(name, layer, signature(layer.forward).bind(*inputs, **named).args, out)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(partial(seen, name), with_kwargs=True)
            hooks.enter_context(hook)
        yield


class Calls(TorchFunctionMode):
    """Inside, `look(name, function, arguments)` is called for every function of torch; name: that
    of these modules in whose pass it is called, or an empty text."""

    def __init__(self, modules: Mapping[str, nn.Module], look: Callable[..., None]) -> None:
        super().__init__()
        self.look, self.passing, self.hooks = look, [""], ExitStack()  # one may hold another
        for name, module in modules.items():
            begin = partial(self._begin, name)
            self.hooks.enter_context(module.register_forward_pre_hook(begin))
            self.hooks.enter_context(module.register_forward_hook(self._end))

    def _begin(self, name: str, *_: Any) -> None:
        self.passing.append(name)

    def _end(self, *_: Any) -> None:
        self.passing.pop()

    def __exit__(self, *error: Any) -> None:
        self.hooks.close()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.look(self.passing[-1], func, (args, kwargs))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def missed_activations(model: nn.Module, image: torch.Tensor | None) -> list[str]:
    """The activations that are no sites, in words: modules of other classes than torch's without
    parts and weights that map every value on its own by what is no straight line, and functions
    that a pass of one image `[1, C, H, W]`, where given, calls outside of sites."""
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
            found.append(f"{name} is a {type(part).__name__}")

    def look(site: str, function: Any, _: Any) -> None:
        if not site and function in RECTIFIERS:
            found.append(f"{function.__name__} is called as a function")

    if image is not None:
        device = device_of(model)
        with undisturbed(device), Calls(sites(model), look):
            model(image.to(device))
    return found
