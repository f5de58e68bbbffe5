"""What a model is: a description that rebuilds exactly that module, and its common layers."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import nn

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
    """Every convolution and linear layer works on integers of so many bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: int = Field(ge=2, le=8)


class ModelSpec(BaseModel):
    """A network, whole: architecture, sizes, normalization, inserted layers, bits.

    `mean` and `std` are per channel, in the [0, 1] range of the images. `binary`: every weight of a
    convolution or linear layer is one bit (models/binary.py). `stages` are the channels of the stem
    and of each stage's residual stream; empty means width, width, 2 width, 4 width, and so on.
    `inner` is the number of channels between the two convolutions of each block, in order of the
    blocks, at least 1 and, where `stages` are not given, at most the block's width; empty means as
    wide as the block. What is false or empty of these three is left out of the stored text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: Literal["resnet18", "resnet20"]
    width: int = Field(ge=1, le=1024)
    channels: int = Field(ge=1, le=4)
    classes: int = Field(ge=2)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[LayerSpec, ...] = ()
    quantization: QuantizationSpec | None = None
    binary: bool = Field(default=False, exclude_if=lambda binary: not binary)
    stages: tuple[Annotated[int, Field(ge=1, le=MOST_CHANNELS)], ...] = Field(
        default=(), exclude_if=lambda stages: not stages
    )
    inner: tuple[int, ...] = Field(default=(), exclude_if=lambda inner: not inner)

    @property
    def streams(self) -> tuple[int, ...]:
        """The channels of the stem and of each stage."""
        return self.stages or streams(self.architecture, self.width)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The output channels of each residual block, in order."""
        return block_widths(self.architecture, self.streams)

    @field_validator("stages")
    @classmethod
    def _stages_fit_the_architecture(cls, stages: tuple[int, ...], info: ValidationInfo) -> Any:
        architecture = info.data.get("architecture")
        if stages and architecture and len(stages) != len(BLOCKS[architecture]) + 1:
            raise ValueError(
                f"{architecture} has a stem and {len(BLOCKS[architecture])} stages, "
                f"not {len(stages)} in all"
            )
        return stages

    @field_validator("inner")
    @classmethod
    def _inner_fits_the_blocks(cls, inner: tuple[int, ...], info: ValidationInfo) -> Any:
        if not inner or not {"architecture", "width", "stages"} <= info.data.keys():
            return inner
        architecture, stages = info.data["architecture"], info.data["stages"]
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


class Site(nn.Sequential):
    """An activation site: a ReLU (in binary networks a Hardtanh), and behind it whatever layers
    families put there."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU(inplace=True))


def sites(model: nn.Module) -> dict[str, Site]:
    """All activation sites of a model by name, in forward order of definition."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Site)}


def attach(model: nn.Module, spec: ModelSpec) -> None:
    """Let `model` carry `spec`."""
    vars(model)["spec"] = spec


def spec_of(model: nn.Module) -> ModelSpec:
    """The spec that a model of this library carries."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise TypeError(f"{type(model).__name__} carries no ModelSpec; build it with models.build")
    return spec
