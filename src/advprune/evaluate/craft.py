"""Crafting: an attack's settings and a model in, 8-bit adversarial images and records out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn

from advprune.attacks import pgd, to_pixels
from advprune.attacks.autoattack import autoattack
from advprune.attacks.cost import Cost
from advprune.attacks.square import square
from advprune.attacks.zoo import zoo
from advprune.core.attack_settings import (
    AttackSettings,
    AutoAttackSettings,
    CurveSettings,
    ExtraAttack,
    SquareSettings,
)
from advprune.core.device import salted
from advprune.core.profile import CURVES
from advprune.core.progress import progress
from advprune.core.resume import Parts
from advprune.evaluate.records import DRAWS, predictions, score
from advprune.models.binary import is_binary
from advprune.models.stochastic import is_randomized
from advprune.quantization.post_training import is_quantized, twin

Progress = Callable[[int], None]
Attack = AttackSettings | SquareSettings | AutoAttackSettings | ExtraAttack


@dataclass(frozen=True)
class Crafted:
    """uint8 images inside the budget, what they cost, and AutoAttack's remaining counts."""

    pixels: torch.Tensor
    cost: Cost = field(default_factory=Cost)
    breakdown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """How attacks are run and scored: seed, batch size, draws of a randomized model.

    parts: where a long attack keeps what it has finished.
    """

    seed: int = 0
    batch: int = 128
    draws: int = DRAWS
    parts: Parts | None = None
    progress: Progress | None = None


def surrogate(model: nn.Module) -> nn.Module:
    """What an attacker differentiates: the model itself, or the twin of a quantized one.

    A binary network is its own: the gradient passes its signs straight through.
    """
    return twin(model) if is_quantized(model) else model


def kind_of(model: nn.Module) -> str:
    """Which suite a model gets: quantized, randomized, binary or deterministic."""
    if is_quantized(model):
        return "quantized"
    if is_randomized(model):
        return "randomized"
    return "binary" if is_binary(model) else "deterministic"


def craft(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: Attack,
    work: Work = Work(),
) -> Crafted:
    """Attack float `images` `[N, C, H, W]` in [0, 1]; the result is uint8, inside the budget.

    The model that is differentiated is its surrogate; torchattacks and AutoAttack see it as well.
    """
    if isinstance(setting, AttackSettings):
        return _pgd(model, images, labels, setting, work)
    cost, differentiable = Cost(), surrogate(model)
    breakdown: dict[str, int] = {}
    if isinstance(setting, SquareSettings):
        adv = _square(model, images, labels, setting, work, cost)
    elif isinstance(setting, AutoAttackSettings):
        adv, breakdown = _autoattack(differentiable, images, labels, setting, work, cost)
    else:
        adv = zoo(
            differentiable,
            images,
            labels,
            setting.name,
            setting.arguments(),
            seed=work.seed,
            batch=work.batch,
            cost=cost,
        )
    budget = budget_of(setting)
    return Crafted(to_pixels(adv, images, budget.eps, budget.norm), cost, breakdown)


def craft_shown(
    what: str,
    model: nn.Module,
    attacked: tuple[torch.Tensor, torch.Tensor],
    setting: Attack,
    work: Work,
) -> Crafted:
    """`craft` on images and labels, under a progress bar that counts image-steps."""
    images, labels = attacked
    budget = budget_of(setting)
    title = f"{what} eps {budget.eps:.3f} steps {budget.steps}"
    with progress(title, len(images) * budget.steps * budget.restarts) as advance:
        return craft(model, images, labels, setting, replace(work, progress=advance))


def _square(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: SquareSettings,
    work: Work,
    cost: Cost,
) -> torch.Tensor:
    """Square needs no gradient, so it attacks the model itself and not its surrogate."""
    return square(
        model,
        images,
        labels,
        setting.eps,
        queries=setting.queries,
        draws=setting.draws if is_randomized(model) else 1,
        generator=torch.Generator().manual_seed(salted(work.seed, "square")),
        batch=work.batch,
        cost=cost,
        progress=work.progress,
    )


def _autoattack(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: AutoAttackSettings,
    work: Work,
    cost: Cost,
) -> tuple[torch.Tensor, dict[str, int]]:
    fitting = "rand" if is_randomized(model) else "standard"
    return autoattack(
        model,
        images,
        labels,
        setting.eps,
        norm=setting.norm,
        version=fitting if setting.version == "auto" else setting.version,
        seed=work.seed,
        batch=work.batch,
        cost=cost,
        parts=work.parts,
    )


def _pgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: AttackSettings,
    work: Work,
) -> Crafted:
    """The engine.

    A randomized model is attacked to the end, and its last iterate is taken: leaving a sample at
    its first misclassified draw, or choosing its best iterate, would reward a lucky draw.

    With `drop`, the attack leaves a sample as soon as it is misclassified, which rounding (or the
    step from a twin to its integers, or other draws) may undo. Such samples are attacked again to
    the end.
    """
    if is_randomized(model):
        setting = setting.model_copy(update={"drop": False, "keep": "last"})
    differentiable, cost = surrogate(model), Cost()
    adv = _engine(differentiable, images, labels, setting, work, cost)
    pixels = to_pixels(adv, images, setting.eps, setting.norm)
    if setting.drop:
        scored = (work.batch, work.draws, work.seed)
        was_fooled = predictions(differentiable, adv, *scored) != labels
        is_right = predictions(model, pixels / 255, *scored) == labels
        if (undone := was_fooled & is_right).any():
            whole = setting.model_copy(update={"drop": False})
            silent = Work(work.seed, work.batch, work.draws)
            again = _engine(differentiable, images[undone], labels[undone], whole, silent, cost)
            pixels[undone] = to_pixels(again, images[undone], setting.eps, setting.norm)
    return Crafted(pixels, cost)


def _engine(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: AttackSettings,
    work: Work,
    cost: Cost,
) -> torch.Tensor:
    """The engine with a profile's settings; float images."""
    return pgd(
        model,
        images,
        labels,
        setting.eps,
        setting.step,
        setting.steps,
        norm=setting.norm,
        loss=setting.loss,
        restarts=setting.restarts,
        random_start=setting.random_start,
        keep=setting.keep,
        drop=setting.drop,
        precision=setting.precision,
        draws=setting.draws,
        backward=setting.backward,
        momentum=setting.momentum,
        generator=torch.Generator().manual_seed(work.seed),
        batch=work.batch,
        cost=cost,
        progress=work.progress,
    )


def budget_of(setting: Attack) -> AttackSettings:
    """The budget of any attack in the engine's terms.

    The steps of Square are its queries, those of AutoAttack 100. An attack of torchattacks has its
    own `eps`, or any change where it has none (names that end in L2 have L2 budgets), and steps
    that are its own affair and stand as 0.
    """
    if isinstance(setting, AttackSettings):
        return setting
    if isinstance(setting, SquareSettings):
        return AttackSettings(eps=setting.eps, step=0.0, steps=setting.queries)
    if isinstance(setting, AutoAttackSettings):
        return AttackSettings(norm=setting.norm, eps=setting.eps, step=0.0, steps=100)
    norm: Literal["L2", "Linf"] = "L2" if setting.name.endswith("L2") else "Linf"
    return AttackSettings(norm=norm, eps=setting.arguments().get("eps", 1.0), step=0.0, steps=0)


def rows(
    model: nn.Module,
    images: torch.Tensor,
    crafted: Crafted,
    labels: torch.Tensor,
    name: str,
    setting: Attack,
    work: Work = Work(),
    clean: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Score 8-bit attacked images on `model`, with the attack's name and settings in each row.

    draws: how many a gradient was averaged over (1 for a deterministic model). forwards and
    gradients: what the attack cost, per image. clean: what the model says of the clean images,
    where that is known (records.answers).
    """
    budget, n = budget_of(setting), max(len(labels), 1)
    averaged = getattr(setting, "draws", 1) if is_randomized(model) else 1
    columns: dict[str, Any] = {
        "attack": name,
        "method": getattr(setting, "method", "torchattacks"),
        "seed": work.seed,
        "norm": budget.norm,
        "eps": budget.eps,
        "step": budget.step,
        "steps": budget.steps,
        "draws": averaged,
        "forwards": crafted.cost.forwards / n,
        "gradients": crafted.cost.gradients / n,
        "breakdown": json.dumps(crafted.breakdown) if crafted.breakdown else "",
    }
    adv = crafted.pixels / 255
    known: dict[str, Any] = {"batch": work.batch, "passes": work.draws, "clean": clean}
    return score(model, images, adv, labels, **known, **columns)


def curve_settings(
    main: AttackSettings, curves: CurveSettings
) -> Iterator[tuple[str, AttackSettings]]:
    """The attacks behind the security curve (over eps) and the step curve (over steps).

    The step stays the same share of eps. Samples that are decided are dropped: only accuracy is
    read off these curves.
    """
    share = main.step / main.eps if main.eps else 0.0
    for eps in curves.eps:
        change = {"eps": eps, "step": eps * share, "drop": True}
        yield CURVES[0], main.model_copy(update=change)
    for steps in curves.steps:
        yield CURVES[1], main.model_copy(update={"steps": steps, "drop": True})
