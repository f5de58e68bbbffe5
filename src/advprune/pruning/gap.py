"""GAP and clean gradients: weights masked by their gradient on adversarial or clean images.

Claim (Weiss et al., 2022). Removing the weights that matter most to the loss on adversarial images
makes a compressed network resist attacks that are transferred from the uncompressed one. The
families by clean gradients are the paper's baselines: the weights that matter least are removed.

Formula. `g = sum_i dL(f(x_i + d_i), y_i) / dw` over training images, L the cross-entropy, d_i a
Linf PGD perturbation at the profile's training `eps`, y_i the true label, the model in
evaluation mode. GAP_global removes the largest signed g of the whole network, GAP_layer the same
share of the largest `|g|` of each tensor. gradient_global and gradient_layer remove the smallest
`|w g|` of clean images (the published code takes one batch in training mode). Ties are broken by
position.

As published. `published: true` repeats what the code does: every inner step of PGD adds its weight
gradient, by predicted labels, to the sum; batch-norm is in training mode, and its running
statistics drift for good; the budget is of normalized images, and pixels may leave [0, 1]; PGD
moves away from the model's own predictions; images are shuffled and augmented. Its fine-tuning rate
and its evaluation, which are not part of the score, are not repeated.

Inert weights. On 8x8 images the last stage of a ResNet18 of the usual strides is 1x1, so that most
weights of its 3x3 convolutions meet only padding and have a gradient of exactly zero: pruning by
clean gradients removes them first, at no cost, and GAP_layer keeps them. Training warns of such
networks; `model.strides` avoids them.

Source. Weiss, Alves and Kundu, Hardening DNNs against Transfer Attacks during Network Compression
using Greedy Adversarial Pruning (AICAS 2022, arXiv 2206.07406) and its code
(jonahobw/greedy_adversarial_pruning, jonahobw/shrinkbench); Molchanov et al., Importance
Estimation for Neural Network Pruning (CVPR 2019), for the score by clean gradients.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from advprune.attacks.pgd import pgd
from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.core.progress import progress
from advprune.core.train_settings import crossing
from advprune.models.spec import Normalize
from advprune.pruning.family import Data, Pruned, family, require
from advprune.pruning.masks import Amount, End, Scope, Scores, prunable, ranked, removals
from advprune.training.adversarial import Inner
from advprune.training.standard import augment


class GAP(Amount):
    """GAP_global, GAP_layer: how much is removed (see magnitude), by what score, and how images are
    attacked. score: `signed` gradient, `absolute` one, or `product` with the weight, signed; null
    takes the family's own (global: signed, layer: absolute). remove: which end of the ranking.
    steps: of PGD, at the profile's training eps. published: exactly what the published code does.
    """

    score: Literal["signed", "absolute", "product"] | None = None
    remove: End = "largest"
    steps: int = Field(default=10, ge=0, le=1000)
    published: bool = False


def _collected(model: nn.Module) -> Scores:
    """What backward passes have added up at the prunable weights; the model forgets it."""
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in prunable(model).items()
    }
    model.zero_grad()
    return found


def summed_gradients(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int
) -> Scores:
    """`sum_i d CE(f(x_i), y_i) / d w` of the prunable weights, in evaluation mode. images: float
    `[N, C, H, W]` in [0, 1]. batch: images per pass."""
    model.eval().requires_grad_(True).zero_grad()
    device, weights = device_of(model), list(prunable(model).values())
    with progress("gradients, images", len(images)) as advance:
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            loss = F.cross_entropy(model(x.to(device)), y.to(device), reduction="sum")
            loss.backward(inputs=weights)
            advance(len(x))
    return _collected(model)


def published_gradients(model: nn.Module, data: Data, setting: GAP) -> Scores:
    """What the published code ranks by (see above): the sum, over batches, of the gradient of the
    mean loss at the PGD images *and* at all points that PGD passed through. A last batch of one
    image, which batch-norm cannot take, is left out; UserError where there is no other."""
    images, labels, train, generator = data.images, data.labels, data.train, data.generator
    if len(images) < 2:
        raise UserError("published: batch-norm needs at least two images in a batch")
    model.train().requires_grad_(True).zero_grad()
    device, weights = device_of(model), list(prunable(model).values())
    std = next((m.std for m in model.modules() if isinstance(m, Normalize)), torch.ones(1))
    with progress("GAP as published, images", len(images)) as advance:
        for rows in torch.randperm(len(images), generator=generator).split(train.batch):
            advance(len(rows))
            if len(rows) == 1:
                continue
            # PGD away from the model's own predictions; every step adds its weight gradient.
            x = augment(images[rows], train.flip, train.crop, generator).to(device)
            reach = train.eps * std.to(x)  # [1, C, 1, 1]: eps of normalized images, in pixels
            step = crossing(setting.steps) * reach
            point = x + reach * (torch.rand(x.shape, generator=generator).to(x) * 2 - 1)
            with torch.no_grad():
                guessed = model(x).argmax(1)
            for _ in range(setting.steps):
                point = point.detach().requires_grad_()
                F.cross_entropy(model(point), guessed).backward(inputs=[*weights, point])
                assert point.grad is not None
                moved = point.detach() + step * point.grad.sign()
                point = x + (moved - x).clamp(-reach, reach)
            # The gradient at the images found, by true labels, is added to it.
            loss = F.cross_entropy(model(point.detach()), labels[rows].to(device))
            loss.backward(inputs=weights)
    model.eval()
    return _collected(model)


@family("gradient_global", Amount, scope="global")
@family("gradient_layer", Amount, scope="layer")
def by_gradient(model: nn.Module, setting: Amount, data: Data, scope: Scope) -> Pruned:
    """The weights of the smallest |w g| on clean images."""
    removals(model, setting)  # refuses what is out of reach before anything is computed
    images, weights = require(data).images, prunable(model)
    gradients = summed_gradients(model, images, data.labels, data.train.batch)
    scores = {name: (weights[name] * g / len(images)).abs() for name, g in gradients.items()}
    return ranked(model, scores, setting, data, scope=scope)


@family("GAP_global", GAP, scope="global", score="signed")
@family("GAP_layer", GAP, scope="layer", score="absolute")
def gap(model: nn.Module, setting: GAP, data: Data, scope: Scope, score: str) -> Pruned:
    """The weights of the largest adversarial gradients."""
    removals(model, setting)  # refuses what is out of reach before anything is attacked
    x, y = require(data).images, data.labels
    if setting.published:
        scores = published_gradients(model, data, setting)
    else:
        inner, batch = Inner.usual(data.train.eps, setting.steps), data.train.batch
        how: dict[str, Any] = {"generator": data.generator, "batch": batch}
        with progress("GAP, attack steps", len(x) * inner.steps) as advance:
            attacked = pgd(model, x, y, *inner, progress=advance, **how)
        scores = summed_gradients(model, attacked, y, batch)
    score = setting.score or score
    if score == "absolute":
        scores = {name: g.abs() for name, g in scores.items()}
    elif score == "product":
        scores = {name: prunable(model)[name] * g for name, g in scores.items()}
    return ranked(model, scores, setting, data, scope=scope, remove=setting.remove)
