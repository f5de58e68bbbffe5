"""What a model is: a description that rebuilds exactly that module, and its common layers."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from torch import nn

from advprune.core.errors import InputError
from advprune.core.networks import Network, Options, check_strides, is_factory, is_library

Where = Literal["relu", "conv", "weight"]
BLOCKS: dict[str, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet20": (3, 3, 3)}
MOST_CHANNELS = 16384  # of a layer


class LayerSpec(BaseModel):
    """Layers of one kind that a family put in: behind every ReLU, behind every convolution, or on
    the weight of every convolution and linear layer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    settings: dict[str, Any] = {}
    where: Where = "relu"


class QuantizationSpec(BaseModel):
    """Every convolution and linear layer works on integers of this many bits, except those that are
    `left` in floating point, by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: int = Field(ge=2, le=8)
    left: tuple[str, ...] = Field(default=(), exclude_if=lambda left: not left)


class ModelSpec(BaseModel):
    """A network, whole: architecture, sizes, normalization, inserted layers, bits.

    `architecture` is a name as in `core.networks`. `width` is that of this library's networks, 0 in
    others, whose makers are called with `options`. `mean` and `std` are per channel, in the [0, 1]
    range of the images. `binary`: every weight of a convolution or linear layer is one bit
    (models/binary.py). `stages` are the channels of the stem and of each stage's residual stream;
    empty means width, width, 2 width, 4 width, and so on. `strides` are the steps of each stage's
    first convolution; empty means 1, 2, 2, and so on. `pool_norm`: batch-norm between pooling and
    the classifier. `inner` is the number of channels between
    the two convolutions of each block, in order of the blocks, at least 1 and, where `stages` are
    not given, at most the block's width; empty means as wide as the block. What is false or empty
    of these is left out of the stored text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    architecture: Network
    width: int = Field(
        default=0, ge=0, le=1024, exclude_if=lambda width: not width, validate_default=True
    )
    channels: int = Field(ge=1, le=4)
    classes: int = Field(ge=2, le=100_000)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[LayerSpec, ...] = Field(default=(), max_length=16)
    quantization: QuantizationSpec | None = None
    binary: bool = Field(default=False, exclude_if=lambda binary: not binary)
    stages: tuple[Annotated[int, Field(ge=1, le=MOST_CHANNELS)], ...] = Field(
        default=(), exclude_if=lambda stages: not stages
    )
    strides: tuple[Annotated[int, Field(ge=1, le=4)], ...] = Field(
        default=(), exclude_if=lambda strides: not strides
    )
    pool_norm: bool = Field(default=False, exclude_if=lambda pool_norm: not pool_norm)
    inner: tuple[int, ...] = Field(default=(), exclude_if=lambda inner: not inner)
    options: Options = Field(default={}, exclude_if=lambda options: not options)

    @property
    def outside(self) -> bool:
        """whether the network is foreign (models/outside.py)."""
        return not is_library(self.architecture)

    @property
    def factory(self) -> str | None:
        """The function that makes the network, where it is one of the user's."""
        return self.architecture if is_factory(self.architecture) else None

    @property
    def described(self) -> str:
        """The network in a few words."""
        return self.architecture if self.outside else f"{self.architecture} of width {self.width}"

    @model_validator(mode="after")
    def _parts_are_of_the_library(self) -> "ModelSpec":
        parts = ("width", "binary", "stages", "strides", "pool_norm", "inner")
        if self.outside and (found := [name for name in parts if getattr(self, name)]):
            raise ValueError(f"{self.architecture} has no {found[0]}")
        if self.options and not self.outside:
            raise ValueError(f"{self.architecture} has no options")
        return self

    @field_validator("mean", "std")
    @classmethod
    def _one_for_each_channel(
        cls, numbers: tuple[float, ...], info: ValidationInfo
    ) -> tuple[float, ...]:
        if len(numbers) != info.data.get("channels", len(numbers)):
            raise ValueError(f"{len(numbers)} numbers for {info.data['channels']} channels")
        if info.field_name == "std" and not all(number > 0 for number in numbers):
            raise ValueError("a standard deviation is above 0")
        return numbers

    @field_validator("width")
    @classmethod
    def _width_of_the_library(cls, width: int, info: ValidationInfo) -> int:
        if not width and is_library(info.data.get("architecture", "")):
            raise ValueError("Input should be greater than or equal to 1")
        return width

    @property
    def streams(self) -> tuple[int, ...]:
        """The channels of the stem and of each stage."""
        return self.stages or streams(self.architecture, self.width)

    @property
    def steps(self) -> tuple[int, ...]:
        """The stride of each stage."""
        return self.strides or (1, *(2,) * (len(BLOCKS[self.architecture]) - 1))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The output channels of each residual block, in order."""
        return block_widths(self.architecture, self.streams)

    @field_validator("stages")
    @classmethod
    def _stages_fit_the_architecture(cls, stages: tuple[int, ...], info: ValidationInfo) -> Any:
        architecture = info.data.get("architecture")
        if stages and architecture in BLOCKS and len(stages) != len(BLOCKS[architecture]) + 1:
            raise ValueError(
                f"{architecture} has a stem and {len(BLOCKS[architecture])} stages, "
                f"not {len(stages)} in all"
            )
        return stages

    @field_validator("strides")
    @classmethod
    def _strides_fit_the_architecture(cls, strides: tuple[int, ...], info: ValidationInfo) -> Any:
        check_strides(info.data.get("architecture", ""), strides)
        return strides

    @field_validator("inner")
    @classmethod
    def _inner_fits_the_blocks(cls, inner: tuple[int, ...], info: ValidationInfo) -> Any:
        if not inner or not {"architecture", "width", "stages"} <= info.data.keys():
            return inner
        architecture, stages = info.data["architecture"], info.data["stages"]
        if architecture not in BLOCKS:
            return inner
        widths = block_widths(architecture, streams(architecture, info.data["width"]))
        widths = (MOST_CHANNELS,) * len(widths) if stages else widths
        if len(inner) != len(widths):
            raise ValueError(f"{architecture} has {len(widths)} blocks, not {len(inner)}")
        if any(not 1 <= found <= most for found, most in zip(inner, widths, strict=True)):
            raise ValueError(f"a block has from 1 to {list(widths)} inner channels")
        return inner


def streams(architecture: str, width: int) -> tuple[int, ...]:
    """The usual channels of the stem and of each stage: the stages double."""
    return (width, *(width * 2**i for i in range(len(BLOCKS[architecture]))))


def block_widths(architecture: str, stages: tuple[int, ...]) -> tuple[int, ...]:
    """The output channels of each residual block, in order, from those of stem and stages."""
    each = zip(stages[1:], BLOCKS[architecture], strict=True)
    return tuple(width for width, count in each for _ in range(count))


class Normalize(nn.Module):
    """`(x - mean) / std` per channel, inside the model, so that budgets are in pixels.

    The constants come from the spec and are not stored as tensors.
    """

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
    """All activation sites of a model by name, in forward order of definition.

    In a foreign network, modules such as nn.ReLU that no site holds yet are sites.
    """
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
        raise InputError(f"{type(model).__name__} carries no ModelSpec; build it with models.build")
    return spec
