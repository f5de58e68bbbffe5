"""A model on common corruptions. An entry for each model that is compared, among them its dense
network: all see the same corrupted images."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from pydantic import field_validator
from torch import nn

from advprune.core.params import Params
from advprune.core.settings import Name, Settings
from advprune.data import to_float
from advprune.evaluate.corruptions import KINDS, SEVERITIES, corrupt
from advprune.evaluate.records import Work, answers, scored
from advprune.studies.base import Given, Tables, study


class CorruptionSettings(Settings):
    """kinds: which corruptions (`evaluate.corruptions.KINDS`); all unless said."""

    kinds: list[Name] = list(KINDS)

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: list[str]) -> list[str]:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"there is no {unknown[0]!r}; known: {', '.join(KINDS)}")
        return kinds


def incomparable(params: Params, typed: dict[str, CorruptionSettings]) -> Iterator[str]:
    """Every model is compared with its dense network, which must be studied too, and all models see
    the same corruptions."""
    own, first = {params.studies[name].of: name for name in typed}, next(iter(typed), "")
    for model, name in own.items():
        if (root := params.root(model)) not in own:
            yield f"studies.{name}: {model} is compared with {root}, which needs an entry too"
        if set(typed[name].kinds) != set(typed[first].kinds):
            yield f"studies.{name}.kinds: all models need the same corruptions, those of {first}"


@study("corruptions", CorruptionSettings, incomparable)
def corruptions(settings: CorruptionSettings, given: Given) -> Tables:
    """Records of all test images under every corruption at every severity."""
    test, model = given.splits["test"], given.model.to(given.device)
    whole = model, test.images, test.labels, given.work
    jobs = {kind: partial(corrupted, *whole, kind) for kind in settings.kinds}
    return {"records": pd.concat(given.finished("corruptions", jobs).values(), ignore_index=True)}


def corrupted(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, work: Work, kind: str
) -> pd.DataFrame:
    """Records of uint8 `images` `[N, C, H, W]` under a corruption, with the columns corruption and
    severity. The images follow from pixels and seed, so that models are paired."""
    before, tables = to_float(images), []
    known = replace(work, clean=answers("clean", model, before, labels, work))
    for severity in SEVERITIES:
        after = to_float(torch.from_numpy(corrupt(images.numpy(), kind, severity, work.seed)))
        facts = {"corruption": kind, "severity": severity, "seed": work.seed}
        tables.append(scored(model, before, after, labels, facts, known))
    return pd.concat(tables, ignore_index=True)
