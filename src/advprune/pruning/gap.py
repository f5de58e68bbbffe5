"""GAP, greedy adversarial pruning, and the pruning by clean gradients that it is compared with.

Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using Greedy
Adversarial Pruning (AICAS 2022): the weights that matter most to the loss on adversarial images
are removed, the largest gradients first, so that attacks from the uncompressed network carry over
less. With g the gradient of the cross-entropy, summed over adversarial training images:

- GAP_global: the signed g, one ranking of all weights. GAP_layer: |g|, the same share a tensor.
- gradient_global, gradient_layer: |w g| of clean images, the smallest first.

The published code adds to g what its attack leaves behind, and more; `published: true` does the
same (`published_gradients`).
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from advprune.attacks.pgd import pgd
from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.core.progress import progress
from advprune.core.train_settings import TrainSettings
from advprune.models.spec import Normalize
from advprune.pruning.family import Data, Pruned, family, require
from advprune.pruning.masks import Amount, End, Scope, Scores, prunable, prune_by
from advprune.training.standard import augment

Score = Literal["signed", "absolute", "product"]


class Gradient(Amount):
    """gradient_global, gradient_layer: how much goes, and how many training images are used.

    images: the first so many; null takes all.
    """

    images: int | None = Field(default=None, ge=1)


class GAP(Amount):
    """GAP_global, GAP_layer: how much goes, by what score, and how the images are attacked.

    score: `signed` gradient, `absolute` one, or `product` with the weight, signed; null takes the
    family's own (global: signed, layer: absolute). remove: which end of the ranking goes. steps: of
    PGD, at the profile's training eps and step. images: the first so many training images; null
    takes all. published: what the published code does, to the letter.
    """

    score: Score | None = None
    remove: End = "largest"
    steps: int = Field(default=10, ge=0, le=1000)
    images: int | None = Field(default=None, ge=1)
    published: bool = False


def summed_gradients(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int
) -> Scores:
    """`sum_i d CE(f(x_i), y_i) / d w` by name of the prunable weights, in evaluation mode.

    images: float `[N, C, H, W]` in [0, 1]. batch: images a pass, which does not matter to the sum.
    """
    model.eval().requires_grad_(True)
    device, weights = device_of(model), prunable(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with progress("gradients, images", len(images)) as advance:
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            loss = F.cross_entropy(model(x.to(device)), y.to(device), reduction="sum")
            _add(total, torch.autograd.grad(loss, list(weights.values())))
            advance(len(x))
    return total


def _add(total: Scores, gradients: tuple[torch.Tensor, ...]) -> None:
    for place, gradient in zip(total.values(), gradients, strict=True):
        place += gradient


def clean_scores(model: nn.Module, data: Data, images: int | None) -> Scores:
    """`|w g|`, g the gradient of the mean loss of the first `images` training images."""
    x, y = data.images[:images], data.labels[:images]
    gradients = summed_gradients(model, x, y, data.train.batch)
    weights = prunable(model)
    return {name: (weights[name].detach() * g / len(x)).abs() for name, g in gradients.items()}


def adversarial_gradients(
    model: nn.Module, data: Data, setting: GAP, generator: torch.Generator
) -> Scores:
    """The summed gradients at PGD images of the first training images, by their true labels.

    PGD is Linf in pixel space, from a random start, by the cross-entropy of the model in
    evaluation mode.
    """
    x, y, train = data.images[: setting.images], data.labels[: setting.images], data.train
    with progress("GAP, attack steps", len(x) * setting.steps) as advance:
        adversarial = pgd(
            model,
            x,
            y,
            train.eps,
            train.step,
            setting.steps,
            generator=generator,
            batch=train.batch,
            progress=advance,
        )
    return summed_gradients(model, adversarial, y, train.batch)


def published_gradients(
    model: nn.Module, data: Data, setting: GAP, generator: torch.Generator
) -> Scores:
    """What the published code ranks by: the sum, over batches of training images, of the gradient
    of the mean loss at the PGD images *and* at all points that PGD passed through.

    Batches are shuffled and augmented; batch-norm takes the statistics of the batch, and its
    running statistics drift for good. A last batch of one image, which batch-norm cannot take, is
    left out; UserError where there is no other.
    """
    x, y, train = data.images[: setting.images], data.labels[: setting.images], data.train
    if len(x) < 2:
        raise UserError("GAP, published: batch-norm needs at least two images in a batch")
    weights, device = prunable(model), device_of(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    model.train().requires_grad_(True)
    with progress("GAP as published, images", len(x)) as advance:
        for rows in torch.randperm(len(x), generator=generator).split(train.batch):
            if len(rows) > 1:
                batch = augment(x[rows], train.flip, train.crop, generator).to(device)
                labels = y[rows].to(device)
                for found in _published(model, batch, labels, train, setting.steps, generator):
                    _add(total, found)
            advance(len(rows))
    model.eval()
    return total


def _published(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    train: TrainSettings,
    steps: int,
    generator: torch.Generator,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The gradients of the weights in all backward passes that one batch goes through.

    The labels that PGD moves away from are the model's own predictions. Budget and step are those
    of normalized images, so in pixels they are `std` times as large; pixels may leave [0, 1].
    """
    weights, scale = list(prunable(model).values()), _std(model, x)
    reach, step = train.eps * scale, train.step * scale  # [1, C, 1, 1]
    noise = torch.rand(x.shape, generator=generator).to(x) * 2 - 1
    point = x + reach * noise
    with torch.no_grad():
        guessed = model(x).argmax(1)
    for _ in range(steps):
        point = point.detach().requires_grad_()
        loss = F.cross_entropy(model(point), guessed)
        *gradients, direction = torch.autograd.grad(loss, [*weights, point])
        yield tuple(gradients)
        moved = point.detach() + step * direction.sign()
        point = x + (moved - x).clamp(-reach, reach)
    yield torch.autograd.grad(F.cross_entropy(model(point.detach()), y), weights)


def _std(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The scale of the model's normalization, `[1, C, 1, 1]`; one where it has none."""
    for module in model.modules():
        if isinstance(module, Normalize):
            return module.std.to(x)
    return x.new_ones(1, x.shape[1], 1, 1)


def adversarial_scores(
    model: nn.Module, data: Data, setting: GAP, score: Score, generator: torch.Generator
) -> Scores:
    """The scores of GAP: the adversarial gradient, its size, or the weight times it."""
    rule = published_gradients if setting.published else adversarial_gradients
    gradients = rule(model, data, setting, generator)
    if score == "signed":
        return gradients
    if score == "absolute":
        return {name: g.abs() for name, g in gradients.items()}
    weights = prunable(model)
    return {name: weights[name].detach() * g for name, g in gradients.items()}


def _by_gradient(
    scope: Scope,
    model: nn.Module,
    setting: Gradient,
    data: Data | None,
    generator: torch.Generator,
) -> Pruned:
    name = f"gradient_{scope}"
    scores = partial(clean_scores, model, require(data, name), setting.images)
    return prune_by(name, model, setting, data, generator, scores, scope)


def _gap(
    scope: Scope,
    model: nn.Module,
    setting: GAP,
    data: Data | None,
    generator: torch.Generator,
) -> Pruned:
    name = f"GAP_{scope}"
    score: Score = setting.score or ("signed" if scope == "global" else "absolute")
    scores = partial(adversarial_scores, model, require(data, name), setting, score, generator)
    return prune_by(name, model, setting, data, generator, scores, scope, setting.remove)


@family("gradient_global", Gradient)
def gradient_global(
    model: nn.Module, setting: Gradient, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The smallest |w g| of all."""
    return _by_gradient("global", model, setting, data, generator)


@family("gradient_layer", Gradient)
def gradient_layer(
    model: nn.Module, setting: Gradient, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The same share of each tensor, its smallest |w g|."""
    return _by_gradient("layer", model, setting, data, generator)


@family("GAP_global", GAP)
def gap_global(
    model: nn.Module, setting: GAP, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The largest adversarial gradients of all, with their sign."""
    return _gap("global", model, setting, data, generator)


@family("GAP_layer", GAP)
def gap_layer(
    model: nn.Module, setting: GAP, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The same share of each tensor, its largest adversarial gradients without their sign."""
    return _gap("layer", model, setting, data, generator)
