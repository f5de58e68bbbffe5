"""Probes: small experiments on a model that ask whether its robust accuracy can be believed.

They follow the checklists of Athalye et al. (Obfuscated Gradients, 2018, section 3.1) and Carlini
et al. (On Evaluating Adversarial Robustness, 2019, section 5). Each yields records, from which
`evaluate.verdict` is drawn; their images are not kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import nn

from advprune.attacks import to_pixels
from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy, by_batch
from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.opening import expected_gradient
from advprune.attacks.pgd import random_point
from advprune.core.attack_settings import AttackSettings
from advprune.core.device import device_of, salted
from advprune.evaluate.craft import Crafted, Work, craft, rows
from advprune.evaluate.records import all_logits
from advprune.models.quantized import differentiable
from advprune.models.stochastic import frozen_copy, is_randomized

NOISE_TRIES = 20
NOISE_DRAWS = 2  # of a randomized model, for choosing the worst try; it is scored by all draws
STRONGER_DRAWS = 5
STRONGER_STARTS = 5


def single_step(main: AttackSettings) -> AttackSettings:
    """FGSM at the main attack's budget, which an iterative attack must not fall behind."""
    return main.model_copy(update={"step": main.eps, "steps": 1, "random_start": False})


def stronger(main: AttackSettings, randomized: bool) -> AttackSettings:
    """Twice the steps, half as long, the margin loss; and several starts, or where the model draws
    at random, straight-through gradients that are averaged over several draws."""
    change = {
        "step": main.step / 2,
        "steps": 2 * main.steps,
        "loss": "margin",
        "keep": "best",
        "drop": True,
        "restarts": main.restarts if randomized else max(main.restarts, STRONGER_STARTS),
        "draws": max(main.draws, STRONGER_DRAWS),
        "backward": "identity",
    }
    return main.model_copy(update=change)


def probes(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, main: AttackSettings, work: Work
) -> Mapping[str, Callable[[], pd.DataFrame]]:
    """What makes the records of each probe, by its name (params.PROBES), on float `images`."""
    attacked = {
        "probe_single": (model, single_step(main)),
        "probe_stronger": (model, stronger(main, is_randomized(model))),
    }
    if is_randomized(model):
        frozen = frozen_copy(model, work.seed)
        attacked["probe_frozen"] = frozen, main.model_copy(update={"drop": True})
    return {
        "probe_gradient": partial(gradient, model, images, labels, main, work),
        "probe_noise": partial(noise, model, images, labels, main, work),
    } | {
        name: partial(_attacked, network, images, labels, name, setting, work)
        for name, (network, setting) in attacked.items()
    }


def _attacked(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    name: str,
    setting: AttackSettings,
    work: Work,
) -> pd.DataFrame:
    return rows(model, images, craft(model, images, labels, setting, work), labels, name, work)


def gradient(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, main: AttackSettings, work: Work
) -> pd.DataFrame:
    """The largest entry of the cross-entropy's gradient at each clean image (`gradient`).

    The gradient is the one that the main attack takes: its draws and the model's own backward
    rule, through the twin of a quantized model. Nothing is attacked: adv is the clean image.
    """
    private = attack_copy(differentiable(model), device_of(model))
    setting = main.model_copy(update={"eps": 0.0, "steps": 0})
    draws = main.draws if is_randomized(model) else 1
    cost, device = Cost(), device_of(model)
    cost.watch(private)

    def largest(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        at = pair[0].to(device), pair[1].to(device)
        found, _ = expected_gradient(private, *at, cross_entropy, draws, most=work.batch)
        return found.flatten(1).abs().amax(1).cpu()

    pairs = list(zip(images.split(work.batch), labels.split(work.batch), strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(salted(work.seed, "probe_gradient"))
        size = by_batch(private, pairs, largest, cost)
    crafted = Crafted(to_pixels(images, images, 0.0, "Linf"), setting, cost)
    table = rows(model, images, crafted, labels, "probe_gradient", work)
    return table.assign(gradient=torch.cat(size).numpy())


def noise(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, main: AttackSettings, work: Work
) -> pd.DataFrame:
    """The worst of `NOISE_TRIES` uniform points of the ball, by the margin."""
    generator = torch.Generator().manual_seed(salted(work.seed, "probe_noise"))
    worst, scoring = (
        torch.full((len(images),), -torch.inf),
        replace(work.scoring, draws=NOISE_DRAWS),
    )
    pixels = to_pixels(images, images, main.eps, main.norm)
    for _ in range(NOISE_TRIES):
        points = random_point(images, main.eps, main.norm, generator)
        tried = to_pixels(points, images, main.eps, main.norm)
        reached = margin(all_logits(model, tried / 255, scoring).mean(0), labels)
        better = reached > worst
        pixels[better], worst[better] = tried[better], reached[better]
    passes = NOISE_TRIES * len(images) * (NOISE_DRAWS if is_randomized(model) else 1)
    crafted = Crafted(pixels, main.model_copy(update={"steps": 0}), Cost(passes))
    return rows(model, images, crafted, labels, "probe_noise", work)
