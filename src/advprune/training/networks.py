"""Every network that is trained from scratch, or loaded: dense, binary, or an attacker's.

An attacker trains networks to craft images for transfer to a target: a surrogate learns the labels
of the training images, a substitute (Papernot et al., Practical Black-Box Attacks against Machine
Learning, 2017) the target's answers, here its probabilities.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.core.device import device_of, salted
from advprune.core.errors import UserError
from advprune.core.files import referenced
from advprune.core.networks import is_library
from advprune.core.params import DENSE, Params
from advprune.core.profile import Profile
from advprune.core.train_settings import (
    BinarySettings,
    ModelSettings,
    RecipeSettings,
    SurrogateSettings,
    WeightsSettings,
)
from advprune.data import Split, to_float
from advprune.models.border import admitted
from advprune.models.card import inert_of
from advprune.models.checkpoint import build
from advprune.models.foreign import check_answers
from advprune.models.preprocessing import Preprocessing, for_channels, preprocessing_of
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec, spec_of
from advprune.models.stochastic import is_randomized, mean_logits, undisturbed
from advprune.models.weights import load_foreign
from advprune.training.binary import binary_spec, parameters_of, train_binary
from advprune.training.growth import grow
from advprune.training.inputs import Inputs
from advprune.training.standard import History, accuracy, train

NOTED = 0.01  # share of weights without effect from which on it is said
DRAWS = 10  # answers of a randomized target that are averaged


def train_network(
    params: Params, name: str, inputs: Inputs, parent: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a recipe (`dense-<recipe>`) or of an entry of `models` with `do: train`, and
    its facts for the card: setting, history and, where channels were grown, growth. parent: the
    network that a model is made from."""
    setting, profile, grown = params.setting(name), params.active(), None
    if name not in params.models:
        model, history = load_or_train(profile, name.removeprefix(f"{DENSE}-"), setting, inputs)
    elif isinstance(setting, BinarySettings):
        base = spec_for(profile.model, inputs.train)
        if setting.growth is not None:
            state = inputs.state and inputs.state.with_name("growth.pt")
            grown = grow(base, setting.growth, profile.train, replace(inputs, state=state))
            before, after = (parameters_of(binary_spec(base, found)) for found in (None, grown))
            if after <= before:
                raise UserError(
                    f"Early-Growth ended with {after} parameters, not more than the {before} it "
                    "started from; raise growth.epochs, growth.frozen or growth.gate_lr"
                )
        widest = spec_of(parent) if setting.channels == "uniform" and parent else None
        spec = binary_spec(base, grown, widest)
        model, history = train_binary(spec, setting, profile.train, inputs)
    else:
        copies = params.models[name].section == "substitutes"
        target = parent.to(inputs.device) if copies and parent else None
        model, history = train_surrogate(profile, setting, inputs, target)
    facts = {"setting": setting.model_dump(exclude_none=True), "history": history}
    return model, facts | ({"growth": grown.model_dump()} if grown else {})


def spec_for(settings: ModelSettings, train: Split, weights: Path | None = None) -> ModelSpec:
    """The spec that fits the training images: their channels and classes, and mean and std as the
    settings say. weights: the file of a network that is loaded instead of trained."""
    channels = train.images.shape[1]
    given: ModelSettings | Preprocessing | None = settings if settings.mean else None
    if weights and given is None:
        given = preprocessing_of(settings.network, settings.options, weights)
    if not settings.normalize:
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif given is not None:
        mean, std = (for_channels("model.mean", one, channels) for one in (given.mean, given.std))
    else:
        pixels = to_float(train.images).double()
        mean = tuple(round(float(v), 4) for v in pixels.mean((0, 2, 3)))
        std = tuple(round(max(float(v), 0.01), 4) for v in pixels.std((0, 2, 3)))
    return ModelSpec(
        architecture=settings.network,
        width=settings.width if is_library(settings.network) else 0,
        strides=settings.strides,
        channels=channels,
        classes=len(train.classes),
        mean=mean,
        std=std,
        options=settings.options,
    )


def begin(
    settings: ModelSettings, train: Split, seed: int, weights: WeightsSettings | None = None
) -> nn.Module:
    """The network of the settings for the training images, initialized from `seed` or loaded. Warns
    of weights that meet only padding on these images, which sparsity, stored bits and gradients
    count although they have no effect. UserError where a foreign network cannot answer them."""
    if weights is None:
        model = build(spec_for(settings, train), settings.factory)
        initialize(model, torch.Generator().manual_seed(seed))
    else:
        spec = spec_for(settings, train, referenced(weights.path))
        model = load_foreign(spec, weights.path, weights.sha256, settings.factory)
    check_answers(model, train.shape)
    if (inert := inert_of(model, train.shape)) > NOTED:
        size = "x".join(map(str, train.shape[1:]))
        print(
            f"warning: {inert:.0%} of the weights of {settings.described} meet only padding on "
            f"images of {size}; set model.strides so that no stage is smaller than 2x2",
            file=sys.stderr,
        )
    return model


def load_or_train(
    profile: Profile, recipe_name: str | None, recipe: RecipeSettings, inputs: Inputs
) -> tuple[nn.Module, History]:
    """The dense network and its history: one row per epoch, or a single one where the profile gives
    weights for the recipe of this name. None, of other seeds, is always trained."""
    settings = profile.model
    weights = None if recipe_name is None else settings.weights.get(recipe_name)
    model = begin(settings, inputs.train, inputs.seed, weights).to(inputs.device)
    if weights is None:
        return model, train(model, inputs, profile.train, recipe)
    reached = accuracy(model, inputs.val.images, inputs.val.labels)
    return model, [{"epoch": 0, "val_accuracy": round(reached, 4)}]


def train_surrogate(
    profile: Profile, choice: SurrogateSettings, inputs: Inputs, target: nn.Module | None = None
) -> tuple[nn.Module, History]:
    """Train a network of the attacker's on the training images, and return it with its history.

    target: learn its answers to the images as they are, instead of the labels; the images are then
    neither shifted nor mirrored. The seed is `inputs.seed + choice.seed`.
    """
    images, labels = inputs.train.images, inputs.train.labels
    seed, optimizer = inputs.seed + choice.seed, profile.train
    model = begin(choice.network(profile.model), inputs.train, seed).to(inputs.device)
    if target is not None:
        labels = answers(target, images, optimizer.batch, seed)
        optimizer = optimizer.model_copy(update={"flip": False, "crop": 0, "label_smoothing": 0.0})
    recipe = RecipeSettings(epochs=choice.epochs)
    return model, train(model, inputs, optimizer, recipe, train=(images, labels), seed=seed)


@torch.no_grad()
def answers(target: nn.Module, images: torch.Tensor, batch: int, seed: int) -> torch.Tensor:
    """A target's probabilities `[N, K]` of uint8 images `[N, C, H, W]`, on the CPU; of a randomized
    target by the mean logits of `DRAWS` passes, drawn from `seed`."""
    target = admitted("substitute", target, to_float(images[:2]))
    device, draws = device_of(target), DRAWS if is_randomized(target) else 1
    with undisturbed(device, salted(seed, "substitute")):
        parts = [
            mean_logits(target, to_float(x).to(device), draws).softmax(1).cpu()
            for x in images.split(batch)
        ]
    return torch.cat(parts)
