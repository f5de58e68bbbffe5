"""What a model is: a description that rebuilds exactly that module, and its common layers."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

Where = Literal["relu", "conv", "weight"]


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

    `mean` and `std` are per channel, in the [0, 1] range of the images.
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
    """An activation site: a ReLU, and behind it whatever layers families put there."""

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
