"""The attacks of a profile on one model, and on one family at many settings."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from advprune.attacks.zoo import check_attack
from advprune.evaluate.craft import budget_of, craft, craft_extra, curve_settings, rows
from advprune.models.card import sparsity_of
from advprune.params import AttackChoice, AttackSettings, ExtraAttack, Profile
from advprune.progress import progress
from advprune.pruning import prune
from advprune.resume import Parts

Images = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Suite:
    """What every model of a profile goes through, on the same images.

    images: float `[N, C, H, W]` in [0, 1]. parts: where finished attacks are kept until all are.
    """

    images: torch.Tensor
    labels: torch.Tensor
    profile: Profile
    choice: AttackChoice
    seed: int
    parts: Parts

    def attack(self, name: str, model: nn.Module) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
        """Every named attack and both curves.

        Returns the records of all of them, and the uint8 images of the named attacks (curves keep
        no images).
        """
        for extra in self.choice.extra:  # refuse a wrong name before anything is computed
            check_attack(extra.name, extra.arguments())
        adv, tables = {}, []
        for attack, setting in self.profile.attacks.items():
            adv[attack] = self._crafted(attack, f"{name} {attack}", model, setting)
            tables.append(self._rows(model, adv[attack], attack, setting))
        for extra in self.choice.extra:
            adv[extra.key] = self._crafted_extra(model, extra)
            tables.append(self._rows(model, adv[extra.key], extra.key, budget_of(extra)))
        return pd.concat([*tables, *self._curves(name, model)], ignore_index=True), adv

    def _curves(self, name: str, model: nn.Module) -> list[pd.DataFrame]:
        tables = []
        main = self.profile.attacks[self.choice.main]
        for index, (curve, setting) in enumerate(curve_settings(main, self.profile.curves)):
            pixels = self._crafted(f"{curve}-{index}", f"{name} {curve}", model, setting)
            tables.append(self._rows(model, pixels, curve, setting))
        return tables

    def sweep(
        self, family: str, values: list[Any], dense: nn.Module, train: Images, device: torch.device
    ) -> pd.DataFrame:
        """Apply `family` to `dense` at each of `values`; attack each result with every attack.

        Returns records with the columns value (as text), order, prune_ratio and sparsity.
        """
        tables = []
        for order, value in enumerate(values):
            point = partial(self._point, family, value, dense, train, device)
            tables.append(self.parts.frame(f"{order}-{value}", point).assign(order=order))
        return pd.concat(tables, ignore_index=True)

    def _point(
        self, family: str, value: Any, dense: nn.Module, train: Images, device: torch.device
    ) -> pd.DataFrame:
        pruned = prune(family, dense, value, train, self.seed)
        facts = {"prune_ratio": pruned.ratio, "sparsity": sparsity_of(pruned.model)}
        model = pruned.model.to(device)
        tables = []
        for attack, setting in self.profile.attacks.items():
            adv = self._craft(f"{family}={value} {attack}", model, setting)
            tables.append(self._rows(model, adv, attack, setting))
        return pd.concat(tables, ignore_index=True).assign(value=str(value), **facts)

    def _crafted(
        self, part: str, what: str, model: nn.Module, setting: AttackSettings
    ) -> torch.Tensor:
        return self.parts.tensor(part, partial(self._craft, what, model, setting))

    def _crafted_extra(self, model: nn.Module, extra: ExtraAttack) -> torch.Tensor:
        run = partial(craft_extra, model, self.images, self.labels, extra, seed=self.seed)
        return self.parts.tensor(extra.key, partial(run, batch=self.profile.batch))

    def _rows(
        self, model: nn.Module, pixels: torch.Tensor, attack: str, setting: AttackSettings
    ) -> pd.DataFrame:
        batch = self.profile.batch
        return rows(model, self.images, pixels, self.labels, attack, setting, self.seed, batch)

    def _craft(self, what: str, model: nn.Module, setting: AttackSettings) -> torch.Tensor:
        """Craft under a progress bar that counts image-steps."""
        title = f"{what} eps {setting.eps:.3f} steps {setting.steps}"
        total = len(self.images) * setting.steps * setting.restarts
        with progress(title, total) as advance:
            return craft(
                model,
                self.images,
                self.labels,
                setting,
                seed=self.seed,
                batch=self.profile.batch,
                progress=advance,
            )
