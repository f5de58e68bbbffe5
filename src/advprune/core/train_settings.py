"""Typed settings of data, networks and training. Nothing here needs torch."""

import os
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from advprune.core.networks import Architecture, Factory, Options, check_count, is_library
from advprune.core.settings import PATH, Budget, ModelName, Settings, parse_fraction, relative

InnerStep = Annotated[
    float, BeforeValidator(lambda value: parse_fraction(relative(value, 1.0))), Field(gt=0, le=2)
]


class DataSettings(Settings):
    """Where the images come from and how many are used."""

    source: Literal["digits", "mnist5k", "cifar10", "imagefolder"]
    root: str | None = None
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    size: int | None = Field(default=None, ge=4, le=512)
    train_limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)

    @property
    def place(self) -> str | None:
        """Where pictures lie: `root`, or of CIFAR-10 ADVPRUNE_DATA; None: not on disk."""
        given = os.environ.get("ADVPRUNE_DATA") if self.source == "cifar10" else None
        return self.root or given or None


class WeightsSettings(Settings):
    """Trained weights to load instead of training: a path, or `package:<package>/<file>`."""

    path: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class ModelSettings(Settings):
    """The network: by the name of an architecture, or a function of the user's that makes it.

    factory: `package.module:function` (`models.foreign`). options: arguments of the function, or of
    a model of torchvision or timm. width, strides (one for each stage; empty: 1, 2, 2, ...): of
    resnet18 and resnet20. normalize: by `mean` and `std` of each channel, in [0, 1]; empty: as timm
    or torchvision trained the `weights`, else by the training images. weights: by recipe, or by
    model (a file of `save_model`, with its card beside it), instead of training.
    """

    architecture: Architecture = "resnet18"
    factory: Factory | None = None
    options: Options = {}
    width: int = Field(default=64, ge=1, le=1024)
    strides: tuple[Annotated[int, Field(ge=1, le=4)], ...] = ()
    normalize: bool = True
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights: dict[ModelName, WeightsSettings] = {}

    @model_validator(mode="after")
    def _one_network(self) -> "ModelSettings":
        if self.factory and "architecture" in self.model_fields_set:
            raise ValueError("give either architecture or factory")
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std: give one number for each channel")
        if is_library(self.network):
            check_count("strides", self.network, self.strides)
            if self.options:
                raise ValueError(f"options: {self.network} has none but width and strides")
        elif self.strides:
            raise ValueError(f"strides: {self.network} takes none")
        return self

    @property
    def network(self) -> str:
        """The network's name: its factory or architecture."""
        return self.factory or self.architecture

    @property
    def described(self) -> str:
        """The network in a few words."""
        return f"{self.network} of width {self.width}" if is_library(self.network) else self.network


class TrainSettings(Settings):
    """SGD with Nesterov momentum under a one-cycle schedule.

    eps: the budget of recipes that train on attacked images. label_smoothing: of standard training.
    precision: auto is bfloat16 on a GPU, float32 elsewhere. threads: of a process on a CPU; sums
    round differently with another number.
    """

    epochs: int = Field(default=30, ge=1, le=10000)
    batch: int = Field(default=128, ge=2)
    lr: float = Field(default=0.1, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = False
    crop: int = Field(default=0, ge=0, le=64)
    eps: Budget = 8 / 255
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(default=2, ge=1, le=1024)


def crossing(steps: int) -> float:
    """The usual inner step in parts of the budget, by which a path nearly crosses the ball."""
    return max(1.8 / max(steps, 1), 0.25)


class InnerSettings(Settings):
    """The attack inside a training step. steps: of pgd and trades. step: in parts of the budget, or
    as `0.6*eps`; null takes `crossing`. beta: weight of the TRADES term."""

    method: Literal["standard", "pgd", "trades", "mixed"] = "standard"
    steps: int = Field(default=7, ge=1, le=1000)
    step: InnerStep | None = None
    beta: float = Field(default=6.0, ge=0, le=1000)

    @property
    def stride(self) -> float:
        """The length of a step, in parts of the budget."""
        return crossing(self.steps) if self.step is None else self.step

    @model_validator(mode="after")
    def _can_cross_the_ball(self) -> Self:
        if self.method == "pgd" and self.steps * self.stride < PATH:
            raise ValueError(
                f"{self.steps} steps of {self.stride:g} eps cannot cross the ball from a random "
                f"start; steps * step is at least {PATH} eps"
            )
        return self


class RecipeSettings(InnerSettings):
    """A way of training the dense network (`advprune.training`).

    method: standard; pgd (Madry), trades, or mixed: FGSM on a `share` of each batch. epochs: null
    takes the profile's. budget: in parts of the profile's training eps. probe_steps: of PGD on the
    validation images, by which the epoch that is kept is chosen.
    """

    epochs: int | None = Field(default=None, ge=1, le=10000)
    share: float = Field(default=0.2, ge=0, le=1)
    budget: float = Field(default=1.0, gt=0, le=10)
    probe_steps: int = Field(default=10, ge=1, le=1000)


class FineTuneSettings(InnerSettings):
    """Training that follows compression, with the profile's batches, augmentation and budget. lr:
    the peak of the one-cycle schedule."""

    method: Literal["standard", "pgd", "trades"] = "standard"
    epochs: int = Field(default=6, ge=1, le=10000)
    lr: float = Field(default=0.1, gt=0, le=10)


# `true` takes every default.
FineTune = Annotated[FineTuneSettings | None, BeforeValidator(lambda v: {} if v is True else v)]


class QuantizeSettings(Settings):
    """A quantized model: weights per channel, activations per tensor, batch-norm folded.

    calibration_images: the training images that activation ranges are taken from. training:
    quantization-aware, by which the integers are found; null rounds the weights as they are.
    """

    bits: int = Field(default=8, ge=2, le=8)
    calibration_images: int = Field(default=512, ge=1)
    training: FineTune = None


class GrowthSettings(Settings):
    """Early-Growth: the channels that layers of a binary network need (`advprune.training.growth`).

    factor: width of the super-network. epochs: at most. lr, gate_lr: peaks of the one-cycle
    schedules; in the first `frozen` epochs all channels are on and no gate learns. t: see
    BinarySettings. rate: growth per epoch of the steepness of a gate that is on. It has settled
    when the share of channels that are on changed by less than `tolerance` in each of `patience`
    epochs.
    """

    factor: int = Field(default=3, ge=2, le=16)
    epochs: int = Field(default=30, ge=1, le=10000)
    lr: float = Field(default=0.05, gt=0, le=10)
    gate_lr: float = Field(default=0.05, gt=0, le=1)
    frozen: int = Field(default=5, ge=0, le=10000)
    t: float = Field(default=10.0, ge=0.01, le=1000)
    rate: float = Field(default=1.06, ge=1, le=100)
    tolerance: float = Field(default=0.005, ge=0, le=1)
    patience: int = Field(default=5, ge=1, le=10000)


class BinarySettings(FineTuneSettings):
    """A binary network, trained from scratch (`advprune.training.binary`).

    channels: those of the profile's network (base), those that Early-Growth finds (grown), or
    uniformly more, up to the parameters of its parent (uniform). t: the straight-through slope is a
    tent of half width sqrt(2) / t; over the epochs t grows to this, from 0.01 for weights, from 1
    for inputs.
    """

    channels: Literal["base", "grown", "uniform"] = "base"
    growth: GrowthSettings | None = None
    epochs: int = Field(default=30, ge=1, le=10000)
    lr: float = Field(default=0.1, gt=0, le=10)
    t: float = Field(default=10.0, ge=0.01, le=1000)

    @model_validator(mode="after")
    def _growth_where_grown(self) -> "BinarySettings":
        if (self.channels == "grown") != (self.growth is not None):
            raise ValueError("channels: grown needs a mapping `growth:`, and no other takes one")
        return self


class SurrogateSettings(Settings):
    """A network that an attacker trains for themselves, to craft images on.

    architecture, width, epochs: null takes the profile's. seed: added to the run's, so that
    initialization and order are others than the dense network's.
    """

    architecture: Architecture | None = None
    options: Options = {}
    width: int | None = Field(default=None, ge=1, le=1024)
    epochs: int | None = Field(default=None, ge=1, le=10000)
    seed: int = Field(default=1, ge=0, lt=2**30)

    def network(self, profile: ModelSettings) -> ModelSettings:
        """The settings of the attacker's network, of which `profile` says what is not given."""
        known = profile.model_dump(exclude_unset=True)
        if self.architecture is not None:
            known.pop("factory", None)
            if self.architecture != profile.network:
                known.pop("strides", None)  # one for each stage of the profile's network
            known |= {"architecture": self.architecture, "options": self.options}
        if self.width is not None:
            known["width"] = self.width
        return ModelSettings.model_validate(known)
