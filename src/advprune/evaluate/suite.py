"""The attacks of a profile on one model."""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from advprune.attacks.cost import Cost
from advprune.attacks.registry import typed
from advprune.core.ahead import ahead
from advprune.core.attack_settings import Attack, AttackChoice
from advprune.core.profile import Profile
from advprune.core.resume import Noted, Parts
from advprune.evaluate.compare import right
from advprune.evaluate.craft import Crafted, Work, craft_shown, curve_settings, kind_of, rows
from advprune.evaluate.deployed import attacks_on
from advprune.evaluate.probes import ProbeSettings, passes_of, probes
from advprune.evaluate.records import answers
from advprune.models.backward import OF_NETWORKS
from advprune.models.border import admitted
from advprune.models.stochastic import is_randomized
from advprune.models.target import Target, is_blackbox

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Suite:
    """The attacks and probes on every model of a profile, on the same images.

    images: float `[N, C, H, W]` in [0, 1]. parts: where finished attacks are kept until all are.
    parent: what the model was made from; without it, attacks through it are left out.
    """

    images: Tensor
    labels: Tensor
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

    def attack(self, name: str, model: nn.Module) -> tuple[pd.DataFrame, dict[str, Tensor]]:
        """The suite of the model's kind, the extra attacks, the probes and both curves.

        Returns the records of all of them, and the uint8 images of the attacks of the table and of
        the transfer attacks.
        """
        model = admitted("suite", model, self.images)
        main, blind = self.profile.table()[self.choice.main], is_blackbox(model)
        if isinstance(model, Target):
            chosen = attacks_on(model, self.profile, self.choice.main)
        else:
            names, settings = self.profile.suite.of(kind_of(model)), self.profile.attacks
            chosen = {attack: typed(attack, settings[attack]) for attack in names}
        extra = () if blind else self.choice.extra
        chosen |= {one.key: typed(one.key, one.setting) for one in extra}
        foreign = () if self.parent is not None else OF_NETWORKS
        attacks = {n: s for n, s in chosen.items() if getattr(s, "backward", None) not in foreign}
        run = partial(self._run, name, model)
        # Curves are of attacks by gradient.
        points = list(() if blind else curve_settings(main, self.profile.curves))
        asked = [setting for _, setting in points]  # on both curves the same one: crafted once
        curves: list[tuple[str, str, Attack]]
        curves = [(f"curve-{asked.index(one)}", curve, one) for curve, one in points]
        clean = self._clean(model)  # for all pieces
        chains: dict[str, list[tuple[str, str, Attack]]] = {}  # attacks that come after one another
        for attack, setting in attacks.items():
            chains[attack] = chains.get(setting.after or "", [])
            chains[attack].append((attack, attack, setting))
        pieces = list({id(chain): chain for chain in chains.values()}.values())
        pieces += {part: [one for one in curves if one[0] == part] for part, *_ in curves}.values()
        facts = int(self.labels.max()) + 1, is_randomized(model)

        def cost(piece: list[tuple[str, str, Attack]]) -> int:
            return sum(passes_of(setting, *facts) for *_, setting in piece)

        pieces.sort(key=cost, reverse=True)  # no core waits for the longest at the end

        def each(piece: list[tuple[str, str, Attack]]) -> None:
            for one in piece:
                run(*one)

        if not isinstance(model, Target):  # another runtime may not survive a fork
            ahead(f"{name}, attacks", [partial(each, piece) for piece in pieces])
        adv, tables = {}, []
        for attack, setting in attacks.items():
            crafted, table = run(attack, attack, setting)
            tables.append(table)
            if attack in self.profile.suite.kept:
                adv[attack] = crafted.pixels
        known = ProbeSettings(attacks, self.choice.main), replace(self.work, clean=clean)
        found = pd.concat(tables, ignore_index=True)
        tables.append(probes(model, self.images, self.labels, *known, found))
        tables += [run(*curve)[1] for curve in curves]
        return pd.concat(tables, ignore_index=True), adv

    def images_of(self, name: str, model: nn.Module) -> dict[str, Tensor]:
        """The uint8 images that the transfer attacks make on a model that is not judged itself."""
        model = admitted("suite", model, self.images)
        return {
            attack: self._crafted(name, model, attack, attack, setting).pixels
            for attack, setting in self.profile.transferred().items()
        }

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

        return crafted, self.parts.frame(f"{part}-{attack}-rows", scored)

    def _images_for(self, setting: Attack) -> Images:
        first = slice(getattr(setting, "images", None))
        return self.images[first], self.labels[first]

    def _crafted(
        self, name: str, model: nn.Module, part: str, attack: str, setting: Attack
    ) -> Crafted:
        """What was crafted: read back if the part was finished before, else computed and kept.

        An attack that comes `after` another works on the images which that one did not break (after
        a search for distances: on those `within` a distance, from the images that it found), and
        has its images of the others. A random model is attacked as a whole: an image that it got
        wrong once may be right in the next draws.
        """

        def compute() -> Noted:
            images, labels = self._images_for(setting)
            kind, after = kind_of(model), setting.after
            left = torch.ones(len(images), dtype=torch.bool)
            pixels, work = torch.empty_like(images, dtype=torch.uint8), self.work
            if after in self.profile.suite.of(kind) and kind != "randomized":
                first = typed(after, self.profile.attacks[after])
                before, table = self._run(name, model, after, after, first)
                left = torch.tensor(right(table))[: len(images)]
                pixels = before.pixels[: len(images)].clone()
                if setting.within is not None:
                    left &= torch.tensor(table.distance <= setting.within)[: len(images)]
                    work = replace(work, start=pixels[left] / 255)
            made = Crafted(pixels[left], setting)
            if left.any():
                what = f"{name} {attack}"
                made = craft_shown(what, model, (images[left], labels[left]), setting, work)
            pixels[left] = made.pixels
            facts = {"cost": vars(made.cost), "breakdown": made.breakdown, "found": made.found}
            return pixels, facts

        pixels, facts = self.parts.tensor(part, compute)
        return Crafted(pixels, setting, Cost(**facts.pop("cost")), **facts)

    @cache  # noqa: B019 (a suite lives as long as the stage)
    def _clean(self, model: nn.Module) -> dict[str, Any]:
        """The model's answers to the clean images, computed once for all attacks."""
        return answers("clean", model, self.images, self.labels, self.work.scoring)
