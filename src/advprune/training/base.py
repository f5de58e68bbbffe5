"""The dense network of a profile: loaded from weights elsewhere, or trained."""

import sys
from pathlib import Path

import torch
from torch import nn

from advprune.core.files import referenced
from advprune.core.networks import is_library
from advprune.core.profile import Profile
from advprune.core.train_settings import ModelSettings, RecipeSettings
from advprune.data import Split, to_float
from advprune.models.checkpoint import build, load_foreign
from advprune.models.inert import inert_of
from advprune.models.outside import check_answers
from advprune.models.preprocessing import for_channels, preprocessing_of
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec
from advprune.training.accuracy import accuracy
from advprune.training.inputs import Inputs
from advprune.training.standard import History, Trainer

NOTED = 0.01  # share of weights without effect from which on it is said


def spec_for(settings: ModelSettings, train: Split, weights: Path | None = None) -> ModelSpec:
    """The spec that fits the training images: their channels and classes, and mean and std as the
    settings say. weights: the file of a network that is loaded instead of trained."""
    channels = train.images.shape[1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    how = preprocessing_of(settings.network, settings.options, weights) if weights else None
    if settings.normalize and (settings.mean or how):
        given = (
            (settings.mean, settings.std) if settings.mean or how is None else (how.mean, how.std)
        )
        mean, std = (for_channels("model.mean", numbers, channels) for numbers in given)
    elif settings.normalize:
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


def begin(settings: ModelSettings, train: Split, seed: int) -> nn.Module:
    """The network of the settings for the training images, initialized from `seed`.

    Warns of weights that meet only padding on such images: sparsity, stored bits and gradients then
    count what has no effect. UserError where a foreign network cannot answer such images.
    """
    model = build(spec_for(settings, train), settings.factory)
    initialize(model, torch.Generator().manual_seed(seed))
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
    profile: Profile, recipe_name: str, recipe: RecipeSettings, inputs: Inputs
) -> tuple[nn.Module, History]:
    """The dense network and its history, one row per epoch (a single row if it is loaded).

    Weights that the profile gives for the recipe of this name are loaded instead of trained.
    """
    train, val, settings = inputs.train, inputs.val, profile.model
    if (weights := settings.weights.get(recipe_name)) is not None:
        spec = spec_for(settings, train, referenced(weights.path))
        model = load_foreign(spec, weights.path, weights.sha256, settings.factory)
        check_answers(model, train.shape)
        reached = accuracy(model.to(inputs.device), val.images, val.labels)
        return model, [{"epoch": 0, "val_accuracy": round(reached, 4)}]
    model = begin(settings, train, inputs.seed).to(inputs.device)
    known = profile.train, recipe, inputs.seed, inputs.state, inputs.after_epoch
    images, held_out = inputs.pairs
    return model, Trainer(model, images, held_out, *known).run()
