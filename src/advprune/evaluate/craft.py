"""Crafting: an attack's settings and a model in, 8-bit adversarial images and records out."""

from collections.abc import Callable, Iterator
from typing import Literal

import pandas as pd
import torch
from torch import nn

from advprune.attacks import pgd, to_pixels
from advprune.attacks.zoo import zoo
from advprune.evaluate.records import predictions, score
from advprune.params import CURVES, AttackSettings, CurveSettings, ExtraAttack
from advprune.quantize import is_quantized, twin

Progress = Callable[[int], None]


def surrogate(model: nn.Module) -> nn.Module:
    """What an attacker differentiates: the model itself, or the twin of a quantized one."""
    return twin(model) if is_quantized(model) else model


def craft(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: AttackSettings,
    *,
    seed: int = 0,
    batch: int = 128,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Attack float `images` `[N, C, H, W]` in [0, 1]; return uint8 images inside the budget.

    With `drop`, the attack leaves a sample as soon as it is misclassified, which rounding (or the
    step from a twin to its integers) may undo. Such samples are attacked again to the end.
    """
    differentiable = surrogate(model)
    adv = _attack(differentiable, images, labels, setting, seed, batch, progress)
    pixels = to_pixels(adv, images, setting.eps, setting.norm)
    if setting.drop:
        was_fooled = predictions(differentiable, adv, batch) != labels
        is_right = predictions(model, pixels / 255, batch) == labels
        if (undone := was_fooled & is_right).any():
            whole = setting.model_copy(update={"drop": False})
            again = _attack(
                differentiable, images[undone], labels[undone], whole, seed, batch, None
            )
            pixels[undone] = to_pixels(again, images[undone], setting.eps, setting.norm)
    return pixels


def _attack(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    setting: AttackSettings,
    seed: int,
    batch: int,
    progress: Progress | None,
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
        generator=torch.Generator().manual_seed(seed),
        batch=batch,
        progress=progress,
    )


def craft_extra(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    extra: ExtraAttack,
    *,
    seed: int = 0,
    batch: int = 128,
) -> torch.Tensor:
    """Run an attack of torchattacks; return uint8 images, inside `eps` where it has one."""
    adv = zoo(
        surrogate(model),
        images,
        labels,
        extra.name,
        extra.arguments(),
        seed=seed,
        batch=batch,
    )
    budget = budget_of(extra)
    return to_pixels(adv, images, budget.eps, budget.norm)


def budget_of(extra: ExtraAttack) -> AttackSettings:
    """The budget of an attack of torchattacks: its `eps`, or any change where it has none.

    Names that end in L2 have L2 budgets; the steps are the attack's own affair and stand as 0.
    """
    norm: Literal["L2", "Linf"] = "L2" if extra.name.endswith("L2") else "Linf"
    return AttackSettings(norm=norm, eps=extra.arguments().get("eps", 1.0), step=0.0, steps=0)


def rows(
    model: nn.Module,
    images: torch.Tensor,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    name: str,
    setting: AttackSettings,
    seed: int,
    batch: int = 128,
) -> pd.DataFrame:
    """Score 8-bit attacked images on `model`, with the attack's name and settings in each row."""
    columns = {"attack": name, "seed": seed} | setting.model_dump(include={"eps", "step", "steps"})
    return score(model, images, pixels / 255, labels, batch=batch, **columns)


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
