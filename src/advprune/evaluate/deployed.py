"""Does a target answer as the network does whose gradients are followed in its place?"""

import torch

from advprune.attacks.losses import margin
from advprune.evaluate.records import all_logits
from advprune.models.quantized import differentiable
from advprune.models.target import Target

CLOSE = 0.1  # of the mean margin, by which the margins of one image may differ: more than rounding


def agreement(target: Target, images: torch.Tensor) -> float:
    """The share of images that a target and its source answer alike: by the same class and, where
    the target gives scores, by nearly the same margin of that class over the others.

    A wrong scale in a file shifts margins long before it changes classes.
    """
    own, source = (all_logits(one, images)[0] for one in (target, differentiable(target)))
    labels = source.argmax(1)
    alike = own.argmax(1) == labels
    if not target.labels:
        wanted = margin(source, labels)
        alike &= (margin(own, labels) - wanted).abs() <= CLOSE * wanted.abs().mean()
    return float(alike.float().mean())
