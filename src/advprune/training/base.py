"""The dense network of a profile: loaded from weights elsewhere, or trained."""

import sys

import torch
from torch import nn

from advprune.core.networks import is_library
from advprune.core.profile import Profile
from advprune.core.train_settings import ModelSettings, RecipeSettings
from advprune.data import Split, to_float
from advprune.models.checkpoint import build, load_foreign
from advprune.models.inert import inert_of
from advprune.models.outside import check_answers
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec
from advprune.training.accuracy import accuracy
from advprune.training.inputs import Inputs
from advprune.training.standard import History, Trainer

NOTED = 0.01  # share of weights without effect from which on it is said


def spec_for(settings: ModelSettings, train: Split) -> ModelSpec:
    """The spec that fits the training images: their channels, classes, mean and std."""
    channels = train.images.shape[1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if settings.normalize:
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
        known = weights.path, weights.sha256, settings.factory
        model = load_foreign(spec_for(settings, train), *known)
        check_answers(model, train.shape)
        reached = accuracy(model.to(inputs.device), val.images, val.labels)
        return model, [{"epoch": 0, "val_accuracy": round(reached, 4)}]
    model = begin(settings, train, inputs.seed).to(inputs.device)
    seed, say = inputs.seed, inputs.after_epoch
    trainer = Trainer(model, *inputs.pairs, profile.train, recipe, seed, inputs.state, say)
    return model, trainer.run()
