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
from advprune.evaluate.craft import Crafted, craft, curve_settings, kind_of, rows
from advprune.evaluate.deployed import attacks_on
from advprune.evaluate.evidence import white_box
from advprune.evaluate.probes import Probe, passes_of
from advprune.evaluate.records import Work, answers
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
        """The records of the suite of the model's kind, of the probes and of both curves; and the
        uint8 images of the attacks of the table and of the transfer attacks."""
        model = admitted("suite", model, self.images)
        main = self.profile.table()[self.choice.main]
        attacks = self._attacks(model)
        # Curves are of attacks by gradient. A setting that is on both is run once.
        curves = [] if is_blackbox(model) else list(curve_settings(main, self.profile.curves))
        settings = [setting for _, setting in curves]
        parts = [f"curve-{settings.index(setting)}" for setting in settings]
        jobs = attacks | dict(zip(parts, settings, strict=True))
        run, clean = partial(self._run, name, model), self._clean(model)  # the same for all jobs

        def follow(chain: dict[str, Attack]) -> None:
            for one in chain.items():
                run(*one)

        if not isinstance(model, Target):  # another runtime may not survive a fork
            chains = self._chains(jobs, is_randomized(model))
            ahead(f"{name}, attacks", [partial(follow, chain) for chain in chains])
        found = {attack: run(attack, setting) for attack, setting in attacks.items()}
        suite = pd.concat([table for _, table in found.values()], ignore_index=True)
        probe = Probe(model, self.images, self.labels, main, replace(self.work, clean=clean))
        probed = probe.all(attacks, white_box(suite, self.choice.main))
        drawn = zip(curves, parts, strict=True)
        tables = [run(part, setting)[1].assign(attack=curve) for (curve, setting), part in drawn]
        kept = {n: made.pixels for n, (made, _) in found.items() if n in self.profile.suite.kept}
        return pd.concat([suite, probed, *tables], ignore_index=True), kept

    def images_of(self, name: str, model: nn.Module) -> dict[str, Tensor]:
        """The uint8 images that the transfer attacks make on a model that is not judged itself."""
        model = admitted("suite", model, self.images)
        return {
            attack: self._crafted(name, model, attack, setting).pixels
            for attack, setting in self.profile.transferred().items()
        }

    def _attacks(self, model: nn.Module) -> dict[str, Attack]:
        """The attacks of the model's kind and the extra ones, by name, typed."""
        if isinstance(model, Target):
            found = attacks_on(model, self.profile, self.choice.main)
        else:
            names, settings = self.profile.suite.of(kind_of(model)), self.profile.attacks
            found = {attack: typed(attack, settings[attack]) for attack in names}
        if not is_blackbox(model):
            found |= {one.key: typed(one.key, one.setting) for one in self.choice.extra}
        foreign = () if self.parent is not None else OF_NETWORKS
        return {n: s for n, s in found.items() if getattr(s, "backward", None) not in foreign}

    def _chains(self, jobs: dict[str, Attack], randomized: bool) -> list[dict[str, Attack]]:
        """Jobs that come after one another; the longest first, so that no core waits for it."""
        chains: dict[str, dict[str, Attack]] = {}
        for part, setting in jobs.items():
            chains[part] = chains.get(setting.after or "", {})
            chains[part][part] = setting
        classes = int(self.labels.max()) + 1

        def passes(chain: dict[str, Attack]) -> int:
            return sum(passes_of(setting, classes, randomized) for setting in chain.values())

        return sorted({id(c): c for c in chains.values()}.values(), key=passes, reverse=True)

    def _run(
        self, name: str, model: nn.Module, part: str, setting: Attack
    ) -> tuple[Crafted, pd.DataFrame]:
        """Craft and score; an attack may be for the first images only."""
        crafted = self._crafted(name, model, part, setting)

        def scored() -> pd.DataFrame:
            images, labels = self._images_for(setting)
            clean = {side: column[: len(images)] for side, column in self._clean(model).items()}
            work = replace(self.work, clean=clean)
            return rows(model, images, crafted, labels, part, work)

        return crafted, self.parts.frame(f"{part}-rows", scored)

    def _images_for(self, setting: Attack) -> Images:
        first = slice(getattr(setting, "images", None))
        return self.images[first], self.labels[first]

    def _crafted(self, name: str, model: nn.Module, part: str, setting: Attack) -> Crafted:
        """What was crafted: read back if the part was finished before, else computed and kept.

        An attack that comes `after` another works on the images which that one did not break (after
        a search for distances: on those `within` a distance, from the images that it found), and
        has its images of the others. A random model is attacked as a whole.
        """

        def compute() -> Noted:
            images, labels = self._images_for(setting)
            kind, after = kind_of(model), setting.after
            left = torch.ones(len(images), dtype=torch.bool)
            pixels, work = torch.empty_like(images, dtype=torch.uint8), self.work
            if after in self.profile.suite.of(kind) and kind != "randomized":
                before, table = self._run(
                    name, model, after, typed(after, self.profile.attacks[after])
                )
                left = torch.tensor(right(table))[: len(images)]
                pixels = before.pixels[: len(images)].clone()
                if setting.within is not None:
                    left &= torch.tensor(table.distance <= setting.within)[: len(images)]
                    work = replace(work, start=pixels[left] / 255)
            made = Crafted(pixels[left], setting)
            if left.any():
                made = craft(model, images[left], labels[left], setting, work, f"{name} {part}")
            pixels[left] = made.pixels
            facts = {"cost": vars(made.cost), "breakdown": made.breakdown, "found": made.found}
            return pixels, facts

        pixels, facts = self.parts.tensor(part, compute)
        return Crafted(pixels, setting, Cost(**facts.pop("cost")), **facts)

    @cache  # noqa: B019 (a suite lives as long as the stage)
    def _clean(self, model: nn.Module) -> dict[str, Any]:
        """The model's answers to the clean images, computed once for all attacks."""
        return answers("clean", model, self.images, self.labels, self.work)
