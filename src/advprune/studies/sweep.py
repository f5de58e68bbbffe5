"""Sweep: families at many settings, each applied to one network and attacked; no model is kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field

from advprune.core.ahead import ahead
from advprune.core.attack_settings import AttackSettings
from advprune.core.params import CARRIED
from advprune.core.settings import Name, Settings
from advprune.evaluate.craft import craft_shown, rows
from advprune.evaluate.exchange import received
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.studies.base import Given, Tables, study


class SweepSettings(Settings):
    """points: by family, the settings that it is applied at."""

    points: dict[Name, Annotated[list[Any], Field(min_length=1)]]

    def families(self) -> Iterator[tuple[str, str, Any]]:
        """Place, family and setting of each point."""
        for family, values in self.points.items():
            for order, value in enumerate(values):
                yield f"points.{family}.{order}", family, value


@dataclass(frozen=True, eq=False)
class Points:
    """Families at settings, under `attacks` and images that were crafted elsewhere (`carried`)."""

    given: Given
    attacks: Mapping[str, AttackSettings]
    carried: Mapping[str, torch.Tensor]

    def records(self, settings: SweepSettings) -> pd.DataFrame:
        """Records of all points, with the columns family, value (as text), order, prune_ratio and
        sparsity; images crafted elsewhere have `params.CARRIED` before the attack's name."""
        pieces = [
            (family, order, partial(self._kept, family, order, value))
            for family, values in settings.points.items()
            for order, value in enumerate(values)
        ]
        ahead(f"{self.given.name}, settings", [piece for *_, piece in pieces])
        tables = [piece().assign(family=family, order=order) for family, order, piece in pieces]
        return pd.concat(tables, ignore_index=True)

    def _kept(self, family: str, order: int, value: Any) -> pd.DataFrame:
        made = partial(self._point, family, value)
        return self.given.parts.frame(f"{family}-{order}", made)

    def _point(self, family: str, value: Any) -> pd.DataFrame:
        given, work = self.given, self.given.work
        data = Data(*given.train, given.profile.train)
        pruned = prune(family, given.model, value, data, given.params.seed)
        facts = {"prune_ratio": pruned.ratio, "sparsity": sparsity_of(pruned.model)}
        model, first = pruned.model.to(given.device), slice(given.profile.sweep_images)
        images, labels = (t[first] for t in given.test)
        tables = []
        for attack, setting in self.attacks.items():
            what = f"{family}={value} {attack}"
            crafted = craft_shown(what, model, (images, labels), setting, work)
            tables.append(rows(model, images, crafted, labels, attack, work))
        if self.carried:
            elsewhere = {
                ("dense", CARRIED + attack): pixels[first]
                for attack, pixels in self.carried.items()
            }
            tables.append(received(model, images, labels, elsewhere, work))
        return pd.concat(tables, ignore_index=True).assign(value=str(value), **facts)


@study("sweep", SweepSettings)
def sweep(settings: SweepSettings, given: Given) -> Tables:
    """Every point under the attacks of the suite's table."""
    return {"records": Points(given, given.profile.table(), {}).records(settings)}
