"""The attacks of a profile on one model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from advprune.attacks.cost import Cost
from advprune.attacks.registry import typed
from advprune.core.ahead import ahead
from advprune.core.attack_settings import Attack, AttackChoice, AttackSettings
from advprune.core.profile import Profile
from advprune.core.resume import Noted, Parts
from advprune.evaluate.compare import right
from advprune.evaluate.craft import (
    Crafted,
    Work,
    craft_shown,
    curve_settings,
    kind_of,
    rows,
)
from advprune.evaluate.probes import ProbeSettings, probes
from advprune.evaluate.records import answers
from advprune.models.backward import OF_NETWORKS
from advprune.models.border import admitted

Images = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Suite:
    """The attacks and probes on every model of a profile, on the same images.

    images: float `[N, C, H, W]` in [0, 1]. parts: where finished attacks are kept until all are.
    parent: what the model was made from; without it, attacks through it are left out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    profile: Profile
    choice: AttackChoice
    seed: int
    parts: Parts
    parent: nn.Module | None = None

    @property
    def work(self) -> Work:
        """How attacks are run and scored."""
        how = self.seed, self.profile.batch, self.choice.score_draws, self.parts
        return Work(*how, parent=self.parent)

    def attack(self, name: str, model: nn.Module) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
        """The suite of the model's kind, the extra attacks, the probes and both curves.

        Returns the records of all of them, and the uint8 images of the attacks of the table and of
        those whose images models exchange.
        """
        model = admitted("suite", model, self.images)
        attacks, curves = dict(self._attacks(model)), list(self._curves())
        self._clean(model)  # for all pieces
        chains = [partial(self._chain, name, model, chain) for chain in _chains(attacks)]
        crafted_ahead = [partial(self._run, name, model, *it) for it in curves]
        ahead(f"{name}, attacks", [*chains, *crafted_ahead])
        adv, tables = {}, []
        for attack in attacks:
            crafted, table = self._run(name, model, attack, attack, attacks[attack])
            tables.append(table)
            if attack in self.profile.suite.kept:
                adv[attack] = crafted.pixels
        work = replace(self.work, clean=self._clean(model), parts=self.parts)
        known = self.images, self.labels, ProbeSettings(attacks, self.choice.main), work
        tables.append(probes(model, *known, pd.concat(tables, ignore_index=True)))
        tables += [self._run(name, model, *curve)[1] for curve in curves]
        return pd.concat(tables, ignore_index=True), adv

    def _chain(self, name: str, model: nn.Module, chain: dict[str, Attack]) -> None:
        for attack, setting in chain.items():
            self._run(name, model, attack, attack, setting)

    def images_of(self, name: str, model: nn.Module) -> dict[str, torch.Tensor]:
        """The uint8 images that the exchanged attacks make on a model that is not judged itself."""
        model = admitted("suite", model, self.images)
        return {
            attack: self._crafted(name, model, attack, attack, setting).pixels
            for attack, setting in self.profile.exchanged().items()
        }

    def _attacks(self, model: nn.Module) -> Iterator[tuple[str, Attack]]:
        for attack in self.profile.suite.of(kind_of(model)):
            setting = typed(attack, self.profile.attacks[attack])
            if self.parent is not None or getattr(setting, "backward", None) not in OF_NETWORKS:
                yield attack, setting
        for extra in self.choice.extra:
            yield extra.key, typed(extra.key, extra.setting)

    def _curves(self) -> Iterator[tuple[str, str, AttackSettings]]:
        """The points of both curves: part, curve and setting."""
        main = self.profile.table()[self.choice.main]
        for index, (curve, setting) in enumerate(curve_settings(main, self.profile.curves)):
            yield f"{curve}-{index}", curve, setting

    def _run(
        self, name: str, model: nn.Module, part: str, attack: str, setting: Attack
    ) -> tuple[Crafted, pd.DataFrame]:
        """Craft and score; an attack may be for the first images only."""
        crafted = self._crafted(name, model, part, attack, setting)

        def scored() -> pd.DataFrame:
            images, labels = self._images_for(setting)
            clean = {side: column[: len(images)] for side, column in self._clean(model).items()}
            work = replace(self.work, clean=clean)
            return rows(model, images, crafted, labels, attack, work)

        return crafted, self.parts.frame(f"{part}-rows", scored)

    def _images_for(self, setting: Attack) -> Images:
        first = slice(getattr(setting, "images", None))
        return self.images[first], self.labels[first]

    def _crafted(
        self, name: str, model: nn.Module, part: str, attack: str, setting: Attack
    ) -> Crafted:
        """What was crafted: read back if the part was finished before, else computed and kept.

        An attack that comes `after` another works on the images which that one did not break, and
        has its images of the others. A random model is attacked as a whole: an image that it got
        wrong once may be right in the next draws.
        """

        def compute() -> Noted:
            images, labels = self._images_for(setting)
            made = partial(craft_shown, f"{name} {attack}", model, setting=setting, work=self.work)
            kind = kind_of(model)
            if setting.after not in self.profile.suite.of(kind) or kind == "randomized":
                return _noted(made((images, labels)))
            first = typed(setting.after, self.profile.attacks[setting.after])
            before, table = self._run(name, model, setting.after, setting.after, first)
            left = torch.tensor(right(table))[: len(images)]
            pixels = before.pixels[: len(images)].clone()
            if not left.any():
                return _noted(Crafted(pixels, setting))
            found = made((images[left], labels[left]))
            pixels[left] = found.pixels
            return _noted(replace(found, pixels=pixels))

        pixels, facts = self.parts.tensor(part, compute)
        return Crafted(pixels, setting, Cost(**facts.pop("cost")), **facts)

    @cache  # noqa: B019 (a suite lives as long as the stage)
    def _clean(self, model: nn.Module) -> dict[str, Any]:
        """What the model says of the clean images, once for all attacks."""
        return answers("clean", model, self.images, self.labels, self.work.scoring)


def _chains(attacks: dict[str, Attack]) -> list[dict[str, Attack]]:
    """Attacks that come after one another, together and in order."""
    chains: dict[str, dict[str, Attack]] = {}
    for name, setting in attacks.items():
        chains[name] = chains.get(setting.after or "", {})
        chains[name][name] = setting
    return list({id(chain): chain for chain in chains.values()}.values())


def _noted(made: Crafted) -> Noted:
    """The images, and what JSON holds of the rest."""
    facts = {"cost": vars(made.cost), "breakdown": made.breakdown, "found": made.found}
    return made.pixels, facts
