"""Binary networks of a given number of channels, trained from scratch.

Stage 2 of RA-BNN (Rakin et al., 2021): the network of the channels that Early-Growth found
(growth.py) is trained like any other. Its controls are the base network and, missing in the paper,
a uniformly wider one with as many parameters.
"""

from bisect import bisect_left

import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.core.train_settings import BinarySettings, RecipeSettings, TrainSettings
from advprune.models.binary import begin_epoch, freeze, latent
from advprune.models.checkpoint import build
from advprune.models.resnet import ResNet, initialize
from advprune.models.spec import ModelSpec
from advprune.training.growth import Grown
from advprune.training.inputs import Inputs
from advprune.training.standard import History, train

MOST_WIDTH = 1024


def binary_spec(
    spec: ModelSpec, grown: Grown | None = None, widest: ModelSpec | None = None
) -> ModelSpec:
    """The binary network that starts from `spec`, with batch-norm before the classifier as
    published. grown: with the channels that Early-Growth found. widest: uniformly so wide that its
    number of parameters comes nearest to that of this network. Else of the same width."""
    known = spec.model_dump() | {"binary": True, "pool_norm": True}
    known |= grown.model_dump(include={"stages", "inner"}) if grown else {}
    base = ModelSpec.model_validate(known)
    return base if widest is None else at_width(base, uniform_width(base, parameters_of(widest)))


def at_width(spec: ModelSpec, width: int) -> ModelSpec:
    """The same network at another width, each stage twice as wide as the one before."""
    return ModelSpec.model_validate(spec.model_dump(exclude={"stages", "inner"}) | {"width": width})


def parameters_of(spec: ModelSpec) -> int:
    """How many weights, biases and batch-norm parameters a network has."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(spec).parameters())


def uniform_width(spec: ModelSpec, parameters: int) -> int:
    """The width from 1 to 1024 whose network comes nearest to `parameters`, the smaller of two as
    near. A wider network has more parameters."""

    def count(width: int) -> int:
        return parameters_of(at_width(spec, width))

    enough = 1 + bisect_left(range(1, MOST_WIDTH), parameters, key=count)
    near = [width for width in (enough - 1, enough) if width]
    return min(near, key=lambda width: abs(count(width) - parameters))


def train_binary(
    spec: ModelSpec, settings: BinarySettings, optimizer: TrainSettings, inputs: Inputs
) -> tuple[nn.Module, History]:
    """Train the binary network `spec` and return its deployed form, on the CPU, with its history.
    optimizer: the profile's. UserError where the loss stops being a number."""
    if not spec.binary:
        raise UserError("train_binary: the spec is not that of a binary network")
    model = ResNet(spec)
    initialize(model, torch.Generator().manual_seed(inputs.seed))
    latent(model).to(inputs.device)
    optimizer = optimizer.model_copy(update={"lr": settings.lr})
    recipe = RecipeSettings(**settings.model_dump(exclude={"channels", "growth", "lr", "t"}))

    def narrow(epoch: int) -> None:
        begin_epoch(model, epoch, settings.epochs, settings.t)

    history = train(model, inputs, optimizer, recipe, before_epoch=narrow)
    return freeze(model.cpu()), history
