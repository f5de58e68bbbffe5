"""What a model is: a description that rebuilds exactly that module, and its common layers."""

from operator import not_
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from advprune.core.errors import InputError
from advprune.core.fit import Fit
from advprune.core.networks import BLOCKS, Network, Options, check_count, is_factory, is_library
from advprune.core.settings import Settings

Where = Literal["relu", "conv"]
INSIDE = "network"  # the name of a foreign network in what is built around it
MOST_CHANNELS = 16384  # of a layer
MOST_CLASSES = 100_000
Size = Annotated[int, Field(ge=1, le=2**24)]
UNSAID = Field(exclude_if=not_)  # left out of the stored text where it is false or empty


class LayerSpec(Settings):
    """Layers of one kind that a family put in: behind every ReLU, or behind every convolution."""

    kind: str
    settings: dict[str, Any] = {}
    where: Where = "relu"


class QuantizationSpec(Settings):
    """Every convolution and linear layer works on integers of this many bits, except those that are
    `left` in floating point, by name."""

    bits: int = Field(ge=2, le=8)
    left: Annotated[tuple[str, ...], UNSAID] = ()


class ModelSpec(Settings):
    """A network, whole: architecture, sizes, normalization, inserted layers, bits."""

    architecture: Network
    # Of this library's networks; 0 in others, whose makers are called with `options`.
    width: Annotated[int, Field(ge=0, le=1024), UNSAID] = 0
    channels: int = Field(ge=1, le=4)
    classes: int = Field(ge=2, le=MOST_CLASSES)
    mean: tuple[float, ...]  # of each channel of images in [0, 1], and so is std
    std: tuple[float, ...]
    layers: tuple[LayerSpec, ...] = Field(default=(), max_length=16)
    quantization: QuantizationSpec | None = None
    binary: Annotated[bool, UNSAID] = False  # one bit per weight (models/binary.py)
    # Channels of the stem and of each stage's residual stream; empty: width, width, 2 width, …
    stages: Annotated[tuple[Annotated[int, Field(ge=1, le=MOST_CHANNELS)], ...], UNSAID] = ()
    # Of each stage's first convolution; empty: 1, 2, 2, …
    strides: Annotated[tuple[Annotated[int, Field(ge=1, le=4)], ...], UNSAID] = ()
    pool_norm: Annotated[bool, UNSAID] = False  # batch-norm between pooling and the classifier
    # Channels between the two convolutions of each block, at most its width where `stages` are not
    # given; empty: its width.
    inner: Annotated[tuple[int, ...], UNSAID] = ()
    options: Annotated[Options, UNSAID] = {}
    fit: Annotated[Fit | None, UNSAID] = None  # how pictures become images of the network's size
    # Outputs and inputs of the layers of a foreign network of which some were removed.
    sizes: Annotated[dict[str, tuple[Size, Size]], Field(max_length=4096), UNSAID] = {}

    @property
    def is_foreign(self) -> bool:
        """Whether the network is foreign (models/foreign.py)."""
        return not is_library(self.architecture)

    @property
    def factory(self) -> str | None:
        """The function that makes the network, where it is one of the user's."""
        return self.architecture if is_factory(self.architecture) else None

    @property
    def described(self) -> str:
        """The network in a few words."""
        name = self.architecture
        return name if self.is_foreign else f"{name} of width {self.width}"

    @property
    def streams(self) -> tuple[int, ...]:
        """The channels of the stem and of each stage."""
        doubled = (self.width * 2**i for i in range(len(BLOCKS[self.architecture])))
        return self.stages or (self.width, *doubled)

    @property
    def steps(self) -> tuple[int, ...]:
        """The stride of each stage."""
        return self.strides or (1, *(2,) * (len(BLOCKS[self.architecture]) - 1))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The output channels of each residual block, in order."""
        each = zip(self.streams[1:], BLOCKS[self.architecture], strict=True)
        return tuple(width for width, count in each for _ in range(count))

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        own = ("width", "binary", "stages", "strides", "pool_norm", "inner")
        for key in own if self.is_foreign else ("options", "sizes"):
            if getattr(self, key):
                raise ValueError(f"{self.architecture} has no {key}")
        for key, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != self.channels:
                raise ValueError(f"{key}: {len(numbers)} numbers for {self.channels} channels")
        if not all(number > 0 for number in self.std):
            raise ValueError("std: a standard deviation is above 0")
        if self.is_foreign:
            return self
        if not self.width:
            raise ValueError(f"width: {self.architecture} takes one of at least 1 (got 0)")
        for key in ("stages", "strides", "inner"):
            check_count(key, self.architecture, getattr(self, key))
        most = (MOST_CHANNELS,) * len(self.blocks) if self.stages else self.blocks
        if any(not 1 <= one <= limit for one, limit in zip(self.inner, most, strict=False)):
            raise ValueError(f"inner: a block has from 1 to {most} inner channels")
        return self


def convolution(fan_in: int, fan_out: int, side: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps height and width, up to its stride. side: odd."""
    return nn.Conv2d(fan_in, fan_out, side, stride, padding=side // 2, bias=False)


class Normalize(nn.Module):
    """`(x - mean) / std` per channel, inside the model, so that budgets are in pixels. The
    constants come from the spec and are not stored as tensors."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid),
)


class Site(nn.Sequential):
    """An activation site: a ReLU (in binary networks a Hardtanh, in others' what they have), and
    behind it whatever layers families put there."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__(activation or nn.ReLU(inplace=True))


def sites(model: nn.Module) -> dict[str, nn.Module]:
    """All activation sites of a model by name, in forward order of definition. In a foreign
    network, modules such as nn.ReLU that no site holds yet are sites."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = isinstance(found.get(name.rpartition(".")[0]), Site)
        if isinstance(module, Site) or (isinstance(module, ACTIVATIONS) and not inside):
            found[name] = module
    return found


def attach(model: nn.Module, spec: ModelSpec) -> None:
    """Let `model` carry `spec`."""
    vars(model)["spec"] = spec


def spec_of(model: nn.Module) -> ModelSpec:
    """The spec that a model of this library carries."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        kind = type(model).__name__
        raise InputError(f"{kind} carries no ModelSpec; make it with models.checkpoint.build")
    return spec
