"""The interface of a study: a registry, typed settings, and what a study starts from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from advprune.core.attack_settings import Attack
from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.profile import Profile
from advprune.core.resume import Parts
from advprune.core.settings import Settings, parse
from advprune.data import Split, to_float
from advprune.evaluate.craft import craft, rows
from advprune.evaluate.records import Work
from advprune.pruning import check_controls, setting_of
from advprune.training.inputs import Inputs, Pair

Tables = dict[str, pd.DataFrame]  # by file name without ending; `records` is always among them


@dataclass(frozen=True, eq=False)
class Given:
    """What a study starts from."""

    name: str  # its key in params.yaml
    of: str  # the name of the model
    params: Params
    model: nn.Module
    card: Mapping[str, Any]
    adversarial: Mapping[str, torch.Tensor]  # uint8, crafted on the model, by attack
    splits: Mapping[str, Split]
    parts: Parts  # where finished pieces are kept
    device: torch.device

    @cached_property
    def profile(self) -> Profile:
        """What this kind of study reads of the active profile: other fields are missing."""
        whole = self.params.active().model_copy()
        for field in {*Profile.model_fields} - reads_of(self.params, self.name):
            del vars(whole)[field]
        return whole

    @property
    def work(self) -> Work:
        """How attacks are run and scored."""
        params = self.params
        return Work(params.seed, self.profile.batch, params.attack.score_draws, self.parts)

    @cached_property
    def train(self) -> Pair:
        """The training images, float32 `[N, C, H, W]` in [0, 1], and their labels."""
        return to_float(self.splits["train"].images), self.splits["train"].labels

    @cached_property
    def test(self) -> Pair:
        """The test images likewise; only these are ever attacked."""
        return to_float(self.splits["test"].images), self.splits["test"].labels

    def inputs(self, name: str, seed: int) -> Inputs:
        """What a network is trained on by a seed; `name`: of its unfinished state."""
        state = self.parts.folder / f"{name}-{seed}.pt"
        return Inputs(self.splits["train"], self.splits["val"], seed, self.device, state)

    def finished(
        self, what: str, jobs: Mapping[str, Callable[[], pd.DataFrame]]
    ) -> dict[str, pd.DataFrame]:
        """The table of each job, by its name, as in `Parts.frames`."""
        return self.parts.frames(f"{self.name}, {what}", jobs)


Study = Callable[[Any, Given], Tables]
Refusals = Callable[[Params, dict[str, Any]], Iterator[str]]


class Kind(NamedTuple):
    """What is registered of a kind of study (`study`)."""

    settings: type[Settings]
    function: Study
    refusals: Refusals
    reads: frozenset[str]


_REGISTRY: dict[str, Kind] = {}


def study(
    kind: str,
    settings: type[Settings],
    refusals: Refusals = lambda params, typed: iter(()),
    *,
    reads: Iterable[str] = (),
) -> Callable[[Study], Study]:
    """Register a kind of study.

    reads: fields of the profile besides `batch`; a change of any other repeats no such study.
    refusals: says why the settings of all studies of this kind, by name, could show nothing.
    """

    def register(function: Study) -> Study:
        _REGISTRY[kind] = Kind(settings, function, refusals, frozenset(reads) | {"batch"})
        return function

    return register


def reads_of(params: Params, name: str) -> frozenset[str]:
    """The fields of the profile on which an entry of `studies` depends, besides its settings."""
    return _REGISTRY[params.studies[name].study].reads


def check_studies(params: Params) -> None:
    """Check the settings of all studies before anything is run. UserError where one is wrong, or
    compares what it could never tell apart, with the images, batches or seeds that could."""
    typed: dict[str, dict[str, Any]] = {kind: {} for kind in _REGISTRY}
    for name, entry in params.studies.items():
        known = settings_of(params, name)  # which refuses a kind that there is not
        typed[entry.study][name] = known
    for kind, known in _REGISTRY.items():
        for refusal in known.refusals(params, typed[kind]):
            raise UserError(refusal)


def smallest(is_enough: Callable[[int], bool]) -> int:
    """The smallest number from 2 on that is enough."""
    return next(n for n in count(2) if is_enough(n))


def too_few_images(
    params: Params, least: Callable[[int], float], effect: float, wanted: int | None = None
) -> tuple[int, int] | None:
    """How many test images there are at most, and how many show an effect, by `least`, the smallest
    that n show; None where the data set alone knows how many there are, or they are enough."""
    known = [n for n in (wanted, params.active().data.test_limit) if n is not None]
    if not known or least(min(known)) <= effect:
        return None
    return min(known), smallest(lambda n: least(n) <= effect)


def settings_of(params: Params, name: str) -> Any:
    """The typed settings of an entry of `studies`, with those of the families in it checked.
    UserError names the key, the value and the range."""
    if name not in params.studies:
        known = ", ".join(params.studies) or "none"
        raise UserError(f"params.yaml has no studies.{name}; known: {known}")
    entry = params.studies[name]
    if entry.study not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise UserError(f"studies.{name}.study: there is no kind {entry.study!r}; known: {known}")
    settings = parse(_REGISTRY[entry.study].settings, entry.settings, where=f"studies.{name}")
    typed = {
        place: setting_of(family, value, place=place)
        for where, family, value in getattr(settings, "families", list)()
        for place in [f"studies.{name}.{where}"]
    }
    check_controls(typed)
    return settings


def run_study(name: str, given: Given) -> Tables:
    """Run an entry of `studies` on what it starts from."""
    settings = settings_of(given.params, name)
    return _REGISTRY[given.params.studies[name].study].function(settings, given)


def attacked(
    what: str, model: nn.Module, test: Pair, attacks: Mapping[str, Attack], work: Work
) -> pd.DataFrame:
    """Records of a model under each attack, one after the other; `what`: shown meanwhile."""
    tables = []
    for name, setting in attacks.items():
        images, labels = (t[: getattr(setting, "images", None)] for t in test)
        crafted = craft(model, images, labels, setting, work, f"{what} {name}")
        tables.append(rows(model, images, crafted, labels, name, work))
    return pd.concat(tables, ignore_index=True)
