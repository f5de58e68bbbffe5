"""Sweeps and compression curves: families at many settings, each applied to one network and
attacked; no model is kept.

A compression curve is attacked by its parent's images as well.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field

from advprune.core.attack_settings import AttackSettings
from advprune.core.params import FROM_DENSE
from advprune.core.settings import Name, Settings
from advprune.evaluate.transfer import transfer_records
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.studies.base import Given, Tables, attacked, study


class SweepSettings(Settings):
    """points: by family, the settings that it is applied at."""

    points: dict[Name, Annotated[list[Any], Field(min_length=1)]]

    def families(self) -> Iterator[tuple[str, str, Any]]:
        """Place, family and setting of each point."""
        for family, values in self.points.items():
            for order, value in enumerate(values):
                yield f"points.{family}.{order}", family, value


READS = ("sweep_images", "train", "attacks", "suite")  # of the profile


@study("sweep", SweepSettings, reads=READS)
def sweep(settings: SweepSettings, given: Given) -> Tables:
    """Every point under the attacks of the suite's table."""
    return {"records": _records(settings, given, given.profile.table(), {})}


@study("compression", SweepSettings, reads=READS)
def compression(settings: SweepSettings, given: Given) -> Tables:
    """Every point under the main attack and on images crafted on its parent."""
    main, profile = given.params.attack.main, given.profile
    transferred = {attack: given.adversarial[attack] for attack in profile.transferred()}
    return {"records": _records(settings, given, {main: profile.table()[main]}, transferred)}


def _records(
    settings: SweepSettings,
    given: Given,
    attacks: Mapping[str, AttackSettings],
    transferred: Mapping[str, torch.Tensor],
) -> pd.DataFrame:
    """Records of all points, with the columns family, value (as text), order, prune_ratio and
    sparsity; images crafted elsewhere have `params.FROM_DENSE` before the attack's name."""
    work, first = given.work, slice(given.profile.sweep_images)
    test = given.test[0][first], given.test[1][first]

    def records(family: str, value: Any) -> pd.DataFrame:
        data = Data(*given.train, given.profile.train)
        pruned = prune(family, given.model, value, data, given.params.seed)
        facts = {"prune_ratio": pruned.ratio, "sparsity": sparsity_of(pruned.model)}
        model = pruned.model.to(given.device)
        tables = [attacked(f"{family}={value}", model, test, attacks, work)]
        if transferred:
            images = {("dense", FROM_DENSE + name): x[first] for name, x in transferred.items()}
            tables.append(transfer_records(model, *test, images, work))
        return pd.concat(tables, ignore_index=True).assign(value=str(value), **facts)

    points = [(f, n, v) for f, values in settings.points.items() for n, v in enumerate(values)]
    jobs = {f"{family}-{order}": partial(records, family, value) for family, order, value in points}
    tables = given.finished("settings", jobs).values()
    found = zip(points, tables, strict=True)
    return pd.concat([t.assign(family=f, order=n) for (f, n, _), t in found], ignore_index=True)
