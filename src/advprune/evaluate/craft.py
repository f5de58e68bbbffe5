"""Crafting: an attack's settings and a model in, 8-bit adversarial images and records out."""

from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch import nn

from advprune.attacks import pgd, to_pixels
from advprune.attacks.zoo import zoo
from advprune.evaluate.records import score
from advprune.params import AttackSettings, CurveSettings, ExtraAttack
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
    """Attack float `images` `[N, C, H, W]` in [0, 1]; return uint8 images inside the budget."""
    adv = pgd(
        surrogate(model),
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
        generator=torch.Generator().manual_seed(seed),
        batch=batch,
        progress=progress,
    )
    return to_pixels(adv, images, setting.eps, setting.norm)


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
    arguments = extra.arguments()
    adv = zoo(surrogate(model), images, labels, extra.name, arguments, seed=seed, batch=batch)
    return to_pixels(adv, images, float(arguments.get("eps", 1.0)))


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
        yield "curve_eps", main.model_copy(update=change)
    for steps in curves.steps:
        yield "curve_steps", main.model_copy(update={"steps": steps, "drop": True})
