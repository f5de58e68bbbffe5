"""Crafting: an attack's settings and a model in, 8-bit adversarial images and records out."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor, nn

from advprune.attacks import to_pixels
from advprune.attacks.cost import Cost
from advprune.attacks.engine import no_progress
from advprune.attacks.registry import Context, method_of
from advprune.core.attack_settings import Attack, AttackSettings, CurveSettings
from advprune.core.profile import CURVES
from advprune.core.progress import progress
from advprune.evaluate.records import Work, scored
from advprune.models.binary import is_binary
from advprune.models.quantized import needs_twin
from advprune.models.stochastic import is_randomized


@dataclass(frozen=True)
class Crafted:
    """uint8 images inside the attack's budget, what they cost, and AutoAttack's counts.

    found: what else the attack says of each image, by column of the records.
    """

    pixels: Tensor
    setting: Attack
    cost: Cost = field(default_factory=Cost)
    breakdown: dict[str, int] = field(default_factory=dict)
    found: dict[str, list[float]] = field(default_factory=dict)


def kind_of(model: nn.Module) -> str:
    """Which suite a model gets: randomized (a quantized one, too), quantized, binary, clamped or
    deterministic."""
    if is_randomized(model):
        return "randomized"
    if needs_twin(model):
        return "quantized"
    if is_binary(model):
        return "binary"
    passed = any("straight" in getattr(module, "rules", ()) for module in model.modules())
    return "clamped" if passed else "deterministic"


def craft(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    setting: Attack,
    work: Work = Work(),
    shown: str = "",
) -> Crafted:
    """Attack float `images` `[N, C, H, W]` in [0, 1]; the result is uint8, inside the budget.

    setting: a typed one (`advprune.attacks.registry.typed`). shown: the title of a progress bar,
    which counts image-steps.
    """
    steps = getattr(setting, "steps", 0)
    total = len(labels) * steps * getattr(setting, "restarts", 1)
    title = f"{shown} eps {setting.eps:.3f} steps {steps}"
    with progress(title, total) if shown else nullcontext(no_progress) as advance:
        known = {key: getattr(work, key) for key in ("seed", "batch", "parent", "start")}
        context = Context(**known, progress=advance, pixels=True)
        adv = method_of(setting).function(model, images, labels, setting, context)
    pixels = to_pixels(adv, images, setting.eps, setting.norm, setting.rounding)
    found = {column: values.tolist() for column, values in context.found.items()}
    return Crafted(pixels, setting, context.cost, context.breakdown, found)


def rows(
    model: nn.Module,
    images: Tensor,
    crafted: Crafted,
    labels: Tensor,
    name: str,
    work: Work = Work(),
) -> pd.DataFrame:
    """Score 8-bit attacked images on `model`, with the attack's name, settings and cost per image.

    draws: how many a gradient was averaged over. distance: of a minimum-norm attack, else NaN.
    """
    setting, n = crafted.setting, max(len(labels), 1)
    averaged = getattr(setting, "draws", 1) if is_randomized(model) else 1
    facts = {
        **{"attack": name, "method": getattr(setting, "recorded", setting.method)},
        **{"seed": work.seed, "norm": setting.norm, "eps": setting.eps},
        **{"step": getattr(setting, "step", 0.0), "steps": getattr(setting, "steps", 0)},
        **{"draws": averaged, **{side: total / n for side, total in vars(crafted.cost).items()}},
        "breakdown": json.dumps(crafted.breakdown) if crafted.breakdown else "",
        **{"distance": float("nan"), **crafted.found},
    }
    return scored(model, images, crafted.pixels / 255, labels, facts, work)


def at_budget(setting: AttackSettings, eps: float) -> AttackSettings:
    """The same schedule at another budget, the step in proportion."""
    share = setting.step / setting.eps if setting.eps else 0.0
    return setting.model_copy(update={"eps": eps, "step": eps * share})


def curve_settings(
    main: AttackSettings, curves: CurveSettings
) -> Iterator[tuple[str, AttackSettings]]:
    """The attacks behind the curves over eps and over steps, each with the curve's name. Samples
    that are decided are dropped: only accuracy is read off."""
    decided = main.model_copy(update={"drop": True})
    yield from ((CURVES[0], at_budget(decided, eps)) for eps in curves.eps)
    yield from ((CURVES[1], decided.model_copy(update={"steps": n})) for n in curves.steps)
