"""Crafting: an attack's settings and a model in, 8-bit adversarial images and records out."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn

from advprune.attacks import pgd, to_pixels
from advprune.attacks.autoattack import AutoAttackOptions, autoattack
from advprune.attacks.cost import Cost
from advprune.attacks.engine import Progress, no_progress
from advprune.attacks.pgd import PGDOptions
from advprune.attacks.square import SquareOptions, square
from advprune.attacks.zoo import ZooOptions, zoo
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
from advprune.evaluate.records import DRAWS, Scoring, answers, predictions, table_of
from advprune.models.binary import is_binary
from advprune.models.quantized import is_quantized, twin
from advprune.models.stochastic import is_randomized

Attack = AttackSettings | SquareSettings | AutoAttackSettings | ExtraAttack


@dataclass(frozen=True)
class Crafted:
    """uint8 images inside the attack's budget, what they cost, and AutoAttack's counts."""

    pixels: torch.Tensor
    setting: Attack
    cost: Cost = field(default_factory=Cost)
    breakdown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """How attacks are run and scored: seed, batch size, draws of a randomized model.

    parts: where a long attack keeps its finished parts. clean: the model's answers to the clean
    images (records.answers), where they are known.
    """

    seed: int = 0
    batch: int = 128
    draws: int = DRAWS
    parts: Parts | None = None
    progress: Progress = no_progress
    clean: dict[str, Any] | None = None

    @property
    def scoring(self) -> Scoring:
        """How models are queried."""
        return Scoring(self.batch, self.draws, seed=self.seed)


def differentiable(model: nn.Module) -> nn.Module:
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

    All attacks but Square, which needs no gradient, see the model's differentiable form.
    """
    cost, attacked, breakdown = Cost(), differentiable(model), dict[str, int]()
    known: dict[str, Any] = {"batch": work.batch, "cost": cost}
    if isinstance(setting, AttackSettings):
        return Crafted(_pgd(model, images, labels, setting, work, cost), setting, cost)
    if isinstance(setting, SquareSettings):
        searched = SquareOptions(
            queries=setting.queries,
            draws=setting.draws if is_randomized(model) else 1,
            generator=_seeded(salted(work.seed, "square")),
            progress=work.progress,
            **known,
        )
        adv = square(model, images, labels, setting.eps, searched)
    elif isinstance(setting, AutoAttackSettings):
        fitting = "rand" if is_randomized(model) else "standard"
        version = fitting if setting.version == "auto" else setting.version
        official = AutoAttackOptions(setting.norm, version, work.seed, parts=work.parts, **known)
        adv, breakdown = autoattack(attacked, images, labels, setting.eps, official)
    else:
        options = ZooOptions(work.seed, **known)
        adv = zoo(attacked, images, labels, setting.name, setting.arguments(), options)
    budget = budget_of(setting)
    return Crafted(to_pixels(adv, images, budget.eps, budget.norm), setting, cost, breakdown)


def craft_shown(
    what: str,
    model: nn.Module,
    attacked: tuple[torch.Tensor, torch.Tensor],
    setting: Attack,
    work: Work,
) -> Crafted:
    """`craft` on images and labels, under a progress bar that counts image-steps."""
    (images, labels), budget = attacked, budget_of(setting)
    title = f"{what} eps {budget.eps:.3f} steps {budget.steps}"
    with progress(title, len(images) * budget.steps * budget.restarts) as advance:
        return craft(model, images, labels, setting, replace(work, progress=advance))


def _pgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: AttackSettings,
    work: Work,
    cost: Cost,
) -> torch.Tensor:
    """The engine; uint8 images.

    A randomized model is attacked to the end, and its last iterate is taken: leaving a sample at
    its first misclassified draw, or choosing its best iterate, would reward a lucky draw.

    With `drop`, the attack leaves a sample as soon as it is misclassified, which rounding (or the
    step from a twin to its integers, or other draws) may undo. Such samples are attacked again to
    the end.
    """
    if is_randomized(model):
        setting = setting.model_copy(update={"drop": False, "keep": "last"})
    attacked, search = differentiable(model), (setting.eps, setting.step, setting.steps)
    own = setting.model_dump(exclude={"method", "note", "eps", "step", "steps"})
    how = PGDOptions(**own, batch=work.batch, cost=cost, progress=work.progress)
    adv = pgd(attacked, images, labels, *search, how, generator=_seeded(work.seed))
    pixels = to_pixels(adv, images, setting.eps, setting.norm)
    if setting.drop:
        was_fooled = predictions(attacked, adv, work.scoring) != labels
        is_right = predictions(model, pixels / 255, work.scoring) == labels
        if (undone := was_fooled & is_right).any():
            whole = replace(how, drop=False, progress=no_progress, generator=_seeded(work.seed))
            again = pgd(attacked, images[undone], labels[undone], *search, whole)
            pixels[undone] = to_pixels(again, images[undone], setting.eps, setting.norm)
    return pixels


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    work: Work = Work(),
) -> pd.DataFrame:
    """Score 8-bit attacked images on `model`, with the attack's name and settings in each row.

    draws: how many a gradient was averaged over (1 for a deterministic model). forwards and
    gradients: what the attack cost, per image.
    """
    setting, budget, n = crafted.setting, budget_of(crafted.setting), max(len(labels), 1)
    averaged = getattr(setting, "draws", 1) if is_randomized(model) else 1
    facts = {
        "index": range(len(labels)),
        "label": labels.numpy(),
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
    clean = work.clean or answers("clean", model, images, labels, work.scoring)
    attacked = answers("adv", model, adv, labels, work.scoring)
    return table_of(facts, clean, attacked, adv - images)


def at_budget(setting: AttackSettings, eps: float) -> AttackSettings:
    """The same schedule at another budget, the step in proportion."""
    share = setting.step / setting.eps if setting.eps else 0.0
    return setting.model_copy(update={"eps": eps, "step": eps * share})


def curve_settings(
    main: AttackSettings, curves: CurveSettings
) -> Iterator[tuple[str, AttackSettings]]:
    """The attacks behind the security curve (over eps) and the step curve (over steps).

    Samples that are decided are dropped: only accuracy is read off these curves.
    """
    decided = main.model_copy(update={"drop": True})
    yield from ((CURVES[0], at_budget(decided, eps)) for eps in curves.eps)
    yield from ((CURVES[1], decided.model_copy(update={"steps": n})) for n in curves.steps)
