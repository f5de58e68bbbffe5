"""Foreign networks, of a function of the user's, torchvision or timm: made, cut to size, checked.

The user's function is called as `function(classes=…, channels=…, **options)` and returns an
nn.Module that takes float32 images `[N, channels, H, W]`, in [0, 1] or normalized by a layer in
front, and returns float32 logits `[N, classes]`, in training mode too (docs/own-model.md).

The header of a checkpoint is data from outside. The function that it names is called only if the
caller names the same one (`allowed`). The names of torchvision and timm are looked up in their own
lists of models, and weights are never downloaded.
"""

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from advprune.core.errors import InputError, UserError, with_place
from advprune.core.memory import bounded_memory
from advprune.core.networks import collection_of
from advprune.models.benchmarks import MAKERS
from advprune.models.border import admitted, logits_of, weight_faults
from advprune.models.copies import plain_copy, unshared
from advprune.models.spec import INSIDE, ModelSpec, Normalize
from advprune.models.stochastic import undisturbed

Make = Callable[[], nn.Module]
COLOUR = 3  # channels of an image that torchvision's models take
MOST = 1 << 13  # of numbers in the options of a network that is none of the user's own code
MOST_LAYERS = 20_000  # of such a network
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Sizes = Mapping[str, tuple[int, int]]  # by a layer's name: its outputs and inputs
Sized = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d


def size_of(layer: Sized) -> tuple[int, int]:
    """Outputs and inputs of a layer; of batch-norm both are its channels."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.num_features, layer.num_features


def resized(network: nn.Module, sizes: Sizes) -> nn.Module:
    """The network, in place, with those layers cut to their sizes, as removing filters leaves it. A
    depthwise convolution has as many groups as outputs. UserError where it has no such layer, or a
    smaller one."""
    layers = dict(network.named_modules())
    for name, (outputs, inputs) in sizes.items():
        layer = layers.get(name)
        if not isinstance(layer, Sized):
            raise UserError(f"the network has no layer {name!r} of which filters could be removed")
        most = size_of(layer)
        if outputs > most[0] or inputs > most[1]:
            raise UserError(f"{name} has {most} outputs and inputs, not {(outputs, inputs)}")
        per = inputs  # inputs of a filter
        if isinstance(layer, nn.Conv2d):
            layer.groups = outputs if layer.groups > 1 else 1
            per = inputs // layer.groups
            layer.out_channels, layer.in_channels = outputs, inputs
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = outputs, inputs
        else:
            layer.num_features = outputs
        for key, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.ndim:
                cut = tensor.detach()[:outputs]
                cut = (cut[:, :per] if tensor.ndim > 1 else cut).clone()
                learned = isinstance(tensor, nn.Parameter)
                setattr(layer, key, nn.Parameter(cut) if learned else cut)
    return network


class Foreign(nn.Module):
    """Images `[N, C, H, W]` in [0, 1] to logits `[N, classes]`, by a foreign network. make: gives
    it anew, initialized from torch's random state. Torchvision's models see grey images as colour
    ones."""

    def __init__(self, spec: ModelSpec, make: Make) -> None:
        super().__init__()
        self.spec, self.make = spec, make
        self.normalize = Normalize(spec.mean, spec.std)
        grey = spec.architecture.startswith("torchvision/") and spec.channels == 1
        self.copies = COLOUR if grey else 1
        self.add_module(INSIDE, resized(make(), spec.sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.normalize(x)
        if self.copies > 1:
            x = x.repeat(1, self.copies, 1, 1)
        # Views of a network's own (x.view(len(x), -1)) need the usual layout in memory.
        logits: torch.Tensor = self.get_submodule(INSIDE)(x.contiguous())
        return logits

    def initialize(self, generator: torch.Generator) -> None:
        """The network as its maker initializes it, from a seed that `generator` draws, in place."""
        with undisturbed(seed=int(torch.randint(2**31, (), generator=generator))):
            fresh = resized(self.make(), self.spec.sizes)
        self.get_submodule(INSIDE).load_state_dict(fresh.state_dict())


@bounded_memory()
def build_foreign(spec: ModelSpec, allowed: str | None = None) -> Foreign:
    """The network of a spec that is not one of this library's. allowed: the function that may be
    called, as `package.module:function`. UserError where the spec names another function or an
    unknown model, where the package is missing, or where what is made cannot be compressed and
    stored."""
    if spec.factory is not None and spec.factory != allowed:
        raise UserError(
            f"the network is made by the function {spec.factory}, which is not called because a "
            "file says so; if you trust that code, name it: by model.factory of the profile, or by "
            f"--factory {spec.factory}"
        )
    for option, value in ({} if spec.factory else spec.options).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int | float) and not abs(one) <= MOST:  # a file may say so
                raise UserError(f"{spec.architecture}: {option} is {one}; numbers go up to {MOST}")
    # The shortcut of attention modules in evaluation mode would pass over layers that are put into
    # them, or instead of their own.
    torch.backends.mha.set_fastpath_enabled(False)
    # Tensors that no file holds are the same each time.
    with undisturbed(seed=0), nullcontext() if spec.factory else _few_layers(spec):
        model = Foreign(spec, _maker(spec))
    for fault in _faults(model):
        raise UserError(f"{spec.architecture}: {fault}")
    unshared(model)
    return model


@contextmanager
def _few_layers(spec: ModelSpec) -> Iterator[None]:
    """Inside, a network of more layers than any has, by options of a file, is refused: it would
    take minutes, though little memory."""
    counted = itertools.count()

    def look(*_: Any) -> None:
        if next(counted) >= MOST_LAYERS:
            raise UserError(
                f"{spec.architecture}: its options make a network of over {MOST_LAYERS} layers"
            )

    hook = register_module_module_registration_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _maker(spec: ModelSpec) -> Make:
    """What makes the network anew: the user's function, or that of torchvision or timm."""
    collection, name = collection_of(spec.architecture)
    sizes: dict[str, Any] = {"classes": spec.classes, "channels": spec.channels}
    if spec.factory is not None:
        module, _, name = spec.factory.partition(":")
        function = getattr(imported(module), name, None)
        if not callable(function):
            raise UserError(f"{spec.factory}: {module} has no function {name!r}")
        return partial(_called, spec.factory, function, **sizes, **spec.options)
    if collection == "cifar":
        if name not in MAKERS:
            raise UserError(f"cifar has no network {name!r}; known: {', '.join(MAKERS)}")
        return partial(_called, spec.architecture, MAKERS[name], **sizes, **spec.options)
    if collection == "torchvision":
        from torchvision import models

        if name not in models.list_models(module=models):  # those that classify images
            raise UserError(
                f"torchvision has no classifier {name!r}; see torchvision.models.list_models()"
            )
        if spec.channels not in (1, COLOUR):
            raise UserError(
                f"torchvision/{name} takes grey or colour images, not {spec.channels} channels"
            )
        function, sizes = models.get_model, {"weights": None, "num_classes": spec.classes}
    else:
        function = installed_timm(spec.architecture).create_model
        sizes = {"num_classes": spec.classes, "in_chans": spec.channels, "pretrained": False}
    return partial(_called, spec.architecture, function, name, **sizes, **spec.options)


def installed_timm(architecture: str) -> Any:
    """The package timm; UserError where it is missing or has no such network."""
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            f"{architecture} needs the package timm; pip install 'advprune[timm]', or timm"
        ) from error
    name = collection_of(architecture)[1]
    plain, _, tag = name.partition(".")
    if plain not in timm.list_models() or (tag and name not in timm.list_pretrained(plain)):
        raise UserError(f"timm has no model {name!r}; timm.list_models() gives their names")
    return timm


def imported(module: str) -> Any:
    """A module by name, found from the current folder too; UserError where that fails."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise UserError(f"{module} cannot be imported: {with_place(error)}") from error


def _called(
    name: str, function: Callable[..., Any], /, *arguments: Any, **options: Any
) -> nn.Module:
    """What a function returns; UserError where it fails or that is no module."""
    try:
        made = function(*arguments, **options)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever that code does
        words = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise UserError(f"{name}, called with {words}: {with_place(error)}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{name} returned {type(made).__name__}, not an nn.Module")
    return made


def dtype_name(tensor: torch.Tensor) -> str:
    """`float32`, `int8`, …"""
    return str(tensor.dtype).removeprefix("torch.")


def _faults(model: Foreign) -> Iterator[str]:
    """Why a network cannot be compressed and stored by the names of its tensors."""
    yield from weight_faults(model)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            yield f"{name} is {dtype_name(parameter)}; all parameters must be float32"
    for name, layer in model.named_modules():
        if isinstance(layer, WEIGHTED) and "weight" not in layer._parameters:
            yield f"{name} has no weight of its own; remove its parametrization"


@bounded_memory()
def check_answers(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """UserError where a foreign network does not keep the contract on images `(C, H, W)`, in
    evaluation mode as in training; the model stays as it was. It may draw at random."""
    if not isinstance(model, Foreign) or model.spec.layers or model.spec.quantization:
        return
    who, classes = f"{model.spec.architecture}, images {list(shape)}", model.spec.classes
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    with undisturbed():
        private, given = plain_copy(model).cpu(), images.clone().requires_grad_()
        for how in ("in training", "in evaluation"):
            logits = logits_of(f"{who}, {how}", private.train(how == "in training"), given)
            if (found := logits.shape[1]) != classes:
                raise InputError(f"{who}: the model returns {found} classes, not {classes}")
            if not logits.requires_grad:
                raise InputError(
                    f"{who}: its logits have no gradient by the image, so that nothing can be "
                    "attacked"
                )
        admitted(f"{who}, in evaluation", private, images)


def code_files(factory: str | None) -> list[Path]:
    """The file that holds a function of the user's, and then those of loaded modules that lie
    beside or below it; nothing where there is no function."""
    found = getattr(imported(factory.partition(":")[0]), "__file__", None) if factory else None
    if not found:
        return []
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    beside = {
        path
        for path in map(Path, filter(None, loaded - {found}))
        if path.is_relative_to(Path(found).parent) and path.is_file()
        if "site-packages" not in path.parts and not path.is_relative_to(Path(__file__).parents[1])
    }
    return [Path(found), *sorted(beside)]
