"""A target that is only asked: which attacks it gets, and whether its twin answers as it does."""

from math import log
from typing import Any

import torch
from torch import Tensor

from advprune.attacks.losses import margin
from advprune.attacks.registry import method_of, typed
from advprune.core.attack_settings import Attack, OtherAttack
from advprune.core.profile import Profile
from advprune.evaluate.records import all_logits
from advprune.models.quantized import differentiable
from advprune.models.target import LEAST, Target

CLOSE = 0.1  # of the mean margin, by which the margins of one image may differ: more than rounding
BY_CLASS = "hopskipjump"  # the method that needs no scores


def attacks_on(target: Target, profile: Profile, main: str) -> dict[str, Attack]:
    """The attacks on a target, by name: those on a quantized network.

    Where classes alone are answered, HopSkipJump takes the place of searches that need scores.
    Without a twin there are those searches, HopSkipJump and, for the main attack, a random point.
    """
    found = {name: typed(name, profile.attacks[name]) for name in profile.suite.of("quantized")}
    own: dict[str, Any] = {"norm": found[main].norm, "eps": found[main].eps}
    named = {name: one for name, one in profile.attacks.items() if one.method == BY_CLASS}
    named = named or {BY_CLASS: OtherAttack(method=BY_CLASS, **own)}
    by_class = {name: typed(name, one) for name, one in named.items()}
    searches = {n: one for n, one in found.items() if not method_of(one).gradients}
    if target.twin is None:
        alone = {n: one.model_copy(update={"after": None}) for n, one in searches.items()}
        return {main: found[main].model_copy(update={"steps": 0})} | alone | by_class
    if target.labels:
        return {n: one for n, one in found.items() if n not in searches} | by_class
    return found


def target_agreement(target: Target, images: Tensor) -> float:
    """The share of images that a target and its twin answer alike: by the same class and, where
    the target gives scores, by nearly the same margin of that class over the others.

    Probabilities of the twin are held to the resolution of the target's, the smallest that it
    gives: where they are rounded or saturated, margins say no more.
    """
    own, twin = (all_logits(one, images)[0] for one in (target, differentiable(target)))
    labels, rounding = twin.argmax(1), torch.zeros(len(images))
    alike = own.argmax(1) == labels
    if target.shares:
        smallest = own[own > log(LEAST)].min()
        own, twin = own.clamp_min(smallest), twin.log_softmax(1).clamp_min(smallest)
        rounding = (smallest - twin.topk(2).values).exp().sum(1)  # of the two logarithms
    if not target.labels:
        wanted = margin(twin, labels)
        close = CLOSE * wanted.abs().mean() + rounding
        alike &= (margin(own, labels) - wanted).abs() <= close
    return float(alike.float().mean())
