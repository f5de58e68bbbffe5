"""Probes: small experiments on a model that ask whether its robust accuracy can be believed.

Each yields records, from which `evaluate.verdict` (with the sources) is drawn and which count in
the union; their images are not kept.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from advprune.attacks import to_pixels
from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy, by_batch
from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.opening import expected_gradient
from advprune.attacks.pgd import random_point
from advprune.attacks.registry import method_of, typed
from advprune.core.ahead import ahead
from advprune.core.attack_settings import Attack, AttackSettings, OtherAttack
from advprune.core.device import device_of, salted
from advprune.core.profile import FROZEN
from advprune.core.resume import Parts
from advprune.evaluate.craft import Crafted, craft, rows
from advprune.evaluate.honesty import slope_errors
from advprune.evaluate.measures import right
from advprune.evaluate.records import Work, all_logits
from advprune.evaluate.verdict import dishonest
from advprune.models.quantized import differentiable
from advprune.models.stochastic import (
    Drawn,
    frozen_copy,
    is_randomized,
    stochastic_layers,
    undisturbed,
)
from advprune.models.target import Target, is_blackbox

NOISE_TRIES = 20
NOISE_DRAWS = 2  # of a randomized model, for choosing the worst try; it is scored by all draws
STARTS = 3  # of the stronger probe, at least
NES = {"steps": 20, "samples": 16, "draws": 5}
HONESTY_IMAGES = 100  # the first ones
REPEATED = 20  # passes that show whether draws are fixed
FIXED_IMAGES = 25  # of a model with its draws fixed, which takes a pass for each image


def passes_of(setting: Attack, classes: int, randomized: bool) -> int:
    """Passes, forward and backward, that an attack gives an image that it does not break: twice its
    steps x restarts x draws x runs (target classes), or its queries x draws without gradients."""
    product = 2 if method_of(setting).gradients else 1
    for key in ("steps", "restarts", "draws" if randomized else ""):
        product *= int(getattr(setting, key, 1))
    runs = getattr(setting, "runs", None)
    return product * (runs(classes) if runs else 1)


def stronger(
    main: AttackSettings, suite: Collection[Attack], classes: int, randomized: bool
) -> AttackSettings:
    """More steps, starts and draws than any attack by gradient of the suite, and more passes for
    each image than any attack at all, on the margin; where the model draws at random, by
    straight-through gradients averaged over draws, which take the place of starts."""

    def most(key: str) -> int:
        return max(int(getattr(s, key, 1)) for s in suite if method_of(s).gradients)

    steps = max(2 * main.steps, most("steps") + 1)
    starts, draws = (1, most("draws") + 1) if randomized else (most("restarts") + 1, 1)
    passes = max(passes_of(one, classes, randomized) for one in suite)
    restarts = max(starts, STARTS * (not randomized), passes // (2 * steps * draws) + 1)
    change = {"step": main.step / 2, "steps": steps, "restarts": restarts, "draws": draws}
    rule = {"loss": "margin", "keep": "best", "drop": True, "backward": "identity"}
    return main.model_copy(update=change | rule)


def by_answers(main: AttackSettings) -> dict[str, OtherAttack]:
    """Attacks that ask for answers alone, of a randomized model averaged over draws, at the main
    attack's budget: by estimated gradients, over a step wide enough to see across rounding, and
    through a student."""
    budget = {"norm": main.norm, "eps": main.eps}
    sizes = {"step": main.eps / 5, "sigma": main.eps / 5, **NES}
    return {
        "probe_nes": OtherAttack.model_validate({"method": "nes"} | budget | sizes),
        "probe_student": OtherAttack.model_validate({"method": "student"} | budget),
    }


@dataclass(frozen=True, eq=False)
class Probe:
    """A model that is asked, on float images `[N, C, H, W]` and labels, around its main attack.
    parts: where finished probes are kept."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    main: AttackSettings
    work: Work
    parts: Parts | None = None

    def all(self, suite: Mapping[str, Attack], white: pd.DataFrame) -> pd.DataFrame:
        """The records of all probes (core.profile.PROBES).

        suite: the attacks that the model went through. white: the worst of those by gradient, image
        by image; probes for what they have missed work on images that are right there. Attacks by
        answers alone are run where the gradient is wrong or passes straight through steps.
        """
        main, randomized = self.main, is_randomized(self.model)
        everything = torch.arange(len(self.images))
        kept = torch.tensor(right(white).tolist()).nonzero()[:, 0]
        by = {name: typed(name, setting) for name, setting in by_answers(main).items()}

        def asked(numbers: Tensor) -> list[pd.DataFrame]:
            return self.made({n: partial(self.attacked, n, s, numbers) for n, s in by.items()})

        if is_blackbox(self.model):
            return pd.concat(asked(everything), ignore_index=True)
        # FGSM at the main attack's budget, which an iterative attack must not fall behind.
        single = main.model_copy(update={"step": main.eps, "steps": 1, "random_start": False})
        jobs: dict[str, Callable[[], pd.DataFrame]] = {
            "probe_gradient": self.gradient,
            "probe_noise": self.noise,
            "probe_single": partial(self.attacked, "probe_single", single, everything),
        }
        if len(kept):
            classes = all_logits(self.model, self.images[:1]).shape[2]
            harder = stronger(main, suite.values(), classes, randomized)
            jobs["probe_stronger"] = partial(self.attacked, "probe_stronger", harder, kept)
        if randomized:
            network, work = frozen_copy(self.model, self.work.seed), replace(self.work, clean=None)
            frozen, fixed = replace(self, model=network, work=work), {"drop": True}
            attack = main.model_copy(update=fixed)
            jobs[FROZEN] = partial(frozen.attacked, FROZEN, attack, everything)
        # Classes have no slope; random layers of the library, such as SAP's, a rule of their own.
        has_classes = isinstance(self.model, Target) and self.model.labels
        has_rule = any(not isinstance(layer, Drawn) for layer in stochastic_layers(self.model))
        if not (has_classes or has_rule):
            jobs = {"probe_honesty": self.honesty} | jobs
        tables = self.made(jobs)
        honest = tables[0] if "probe_honesty" in jobs else None
        if len(kept) and honest is not None and (honest.declared.iloc[0] or dishonest(honest)):
            tables += asked(kept)
        return pd.concat(tables, ignore_index=True)

    def made(self, jobs: Mapping[str, Callable[[], pd.DataFrame]]) -> list[pd.DataFrame]:
        """The records of each job, in order; those that were finished before are read back."""
        if self.parts is None:
            return [make() for make in jobs.values()]
        kept = [partial(self.parts.frame, name, make) for name, make in jobs.items()]
        if not isinstance(self.model, Target):  # another runtime may not survive a fork
            ahead("probes", kept[::-1])  # the longest comes last
        return [read() for read in kept]

    def attacked(self, name: str, setting: Attack, numbers: Tensor) -> pd.DataFrame:
        """The records of an attack on the images of these numbers; by a seed of the probe's own,
        so that it starts elsewhere than the suite."""
        pair = self.images[numbers], self.labels[numbers]
        seeded = replace(self.work, seed=salted(self.work.seed, name) % 2**31)
        return self._rows(name, craft(self.model, *pair, setting, seeded), numbers)

    def _rows(self, name: str, crafted: Crafted, numbers: Tensor) -> pd.DataFrame:
        """Records of images of these numbers, with the known answers to their clean ones."""
        at, clean = numbers.numpy(), self.work.clean
        known = None if clean is None else {key: column[at] for key, column in clean.items()}
        work, pair = replace(self.work, clean=known), (self.images[numbers], self.labels[numbers])
        return rows(self.model, pair[0], crafted, pair[1], name, work).assign(index=at)

    def _unattacked(self, name: str, cost: Cost, count: int) -> pd.DataFrame:
        """Records of the first images as they are."""
        setting = self.main.model_copy(update={"eps": 0.0, "steps": 0})
        images = self.images[:count]
        crafted = Crafted(to_pixels(images, images, 0.0, "Linf"), setting, cost)
        return self._rows(name, crafted, torch.arange(len(images)))

    def honesty(self) -> pd.DataFrame:
        """How far the derivative is from the model's answers (honesty.py), on the first images; of
        a model that draws at random, with its draws fixed. Errors are missing where these cannot be
        fixed."""
        cost, seed = Cost(), salted(self.work.seed, "probe_honesty")
        model, count, fixed = self.model, HONESTY_IMAGES, True
        if is_randomized(model):
            model, count = frozen_copy(model, self.work.seed), FIXED_IMAGES
            fixed = _repeats(model, self.images[:2])
        pair = self.images[:count], self.labels[:count]
        errors = slope_errors(model, pair, self.main, seed, cost) if fixed else {}
        found: dict[str, Any] = {"slope_error": nan, "declared": "slope_error" not in errors}
        found |= {"step_error": nan} | {name: values.numpy() for name, values in errors.items()}
        return self._unattacked("probe_honesty", cost, count).assign(**found)

    def gradient(self) -> pd.DataFrame:
        """The largest entry of the cross-entropy's gradient at each clean image (`gradient`): the
        one that the main attack takes, by its draws and through the twin of a quantized model."""
        cost, device, batch = Cost(), device_of(self.model), self.work.batch
        private = attack_copy(differentiable(self.model), device)
        draws = self.main.draws if is_randomized(self.model) else 1
        cost.watch(private)

        def largest(pair: tuple[Tensor, Tensor]) -> Tensor:
            at = pair[0].to(device), pair[1].to(device)
            found, _ = expected_gradient(private, *at, cross_entropy, draws, most=batch)
            return found.flatten(1).abs().amax(1).cpu()

        pairs = list(zip(self.images.split(batch), self.labels.split(batch), strict=True))
        with torch.random.fork_rng():
            torch.manual_seed(salted(self.work.seed, "probe_gradient"))
            sizes = torch.cat(by_batch(private, pairs, largest, cost))
        table = self._unattacked("probe_gradient", cost, len(self.images))
        return table.assign(gradient=sizes.numpy())

    def noise(self) -> pd.DataFrame:
        """The worst of `NOISE_TRIES` uniform points of the ball, by the margin."""
        generator = torch.Generator().manual_seed(salted(self.work.seed, "probe_noise"))
        images, main = self.images, self.main
        worst = torch.full((len(images),), -torch.inf)
        few = replace(self.work, draws=NOISE_DRAWS)
        pixels = to_pixels(images, images, main.eps, main.norm)
        for _ in range(NOISE_TRIES):
            points = random_point(images, main.eps, main.norm, generator)
            tried = to_pixels(points, images, main.eps, main.norm)
            logits = all_logits(self.model, tried / 255, few).mean(0)
            reached = margin(logits, self.labels)
            better = reached > worst
            pixels[better], worst[better] = tried[better], reached[better]
        passes = NOISE_TRIES * len(images) * (NOISE_DRAWS if is_randomized(self.model) else 1)
        crafted = Crafted(pixels, main.model_copy(update={"steps": 0}), Cost(passes))
        return self._rows("probe_noise", crafted, torch.arange(len(images)))


@torch.no_grad()
def _repeats(model: nn.Module, images: Tensor) -> bool:
    """Whether a model answers images the same every time, but for rounding."""
    given = images.to(device_of(model))
    with undisturbed(given.device):
        first = model(given)
        return all(torch.allclose(first, model(given), 1e-5, 1e-5) for _ in range(REPEATED))
