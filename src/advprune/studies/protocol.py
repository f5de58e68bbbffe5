"""The published protocol of SAP, and attacks that know the defence, on one model.

Dhillon et al. (ICLR 2018), sections 3 and 4: FGSM whose gradient is averaged over 100 draws, and
predictions by the mean softmax over 100 draws, over the budget lambda. The adaptive attacks vary
the backward rule and the draws per step (Athalye et al., ICML 2018, section 5.3.1; the erratum by
Dhillon and Carlini, arXiv 2010.00071).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from advprune.attacks import to_pixels
from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.attacks.losses import cross_entropy
from advprune.attacks.opening import expected_gradient
from advprune.attacks.pgd import ascend, project
from advprune.core.ahead import ahead
from advprune.core.attack_settings import ProtocolSettings
from advprune.core.device import device_of, salted
from advprune.core.progress import progress
from advprune.core.settings import Name, Settings
from advprune.evaluate.craft import Work, at_budget, craft, rows
from advprune.evaluate.records import Scoring, answers
from advprune.models.border import admitted
from advprune.models.stochastic import is_randomized
from advprune.pruning import prune
from advprune.studies.base import Given, Images, Tables, study


class Member(Settings):
    """A model of the protocol: the given network, with a family applied to it or not.

    adaptive: whether it goes through the profile's `protocol.adaptive` attacks as well.
    """

    family: Name | None = None
    setting: Any = None
    adaptive: bool = False


class MemberSettings(Settings):
    """members: models of the protocol, by names of your own."""

    members: dict[Name, Member]

    def families(self) -> Iterator[tuple[str, str, Any]]:
        """Place, family and setting of each member that has one."""
        for name, member in self.members.items():
            if member.family is not None:
                yield f"members.{name}", member.family, member.setting


def is_published_sap(family: str | None, setting: Any) -> bool:
    """Whether a member is SAP as published, not the variant on the outputs of convolutions."""
    on_convolutions = isinstance(setting, Mapping) and setting.get("where") == "conv"
    return family == "SAP" and not on_convolutions


@study("protocol", MemberSettings)
def protocol(settings: MemberSettings, given: Given) -> Tables:
    """All members under the single-step, the iterative and the adaptive attacks."""
    chosen = given.profile.protocol
    images, labels = (tensor[: chosen.images] for tensor in given.test)
    course = Protocol(images, labels, chosen, given.work)
    table = course.run(given.model, settings.members, given.train, given.device)
    return {"records": table.assign(of=given.of)}


@dataclass(frozen=True)
class Protocol:
    """The attacks on every member, on the same float `images` `[N, C, H, W]` in [0, 1]."""

    images: torch.Tensor
    labels: torch.Tensor
    settings: ProtocolSettings
    work: Work

    def run(
        self, dense: nn.Module, members: dict[str, Member], train: Images, device: torch.device
    ) -> pd.DataFrame:
        """The records of all members (column `member`), made from the network `dense`.

        work.parts keeps the members that are finished.
        """
        computed = {
            name: partial(self._member, dense, member, train, device)
            for name, member in members.items()
        }
        if self.work.parts:
            keep = self.work.parts.frame
            computed = {name: partial(keep, name, made) for name, made in computed.items()}
            ahead("protocol, members", list(computed.values()))
        tables = []
        with progress("protocol, members", len(members)) as advance:
            for name, made in computed.items():
                tables.append(made().assign(member=name))
                advance(1)
        return pd.concat(tables, ignore_index=True)

    def _member(
        self, dense: nn.Module, member: Member, train: Images, device: torch.device
    ) -> pd.DataFrame:
        model = dense
        if member.family is not None:
            model = prune(member.family, dense, member.setting, train, self.work.seed).model
        return self.record(model.to(device), member.adaptive)

    def record(self, model: nn.Module, adaptive: bool) -> pd.DataFrame:
        """Records of the single-step and the iterative attack at every budget (attack `fgsm`,
        `iterative`) and, where asked for, of the adaptive attacks by name."""
        model = admitted("protocol", model, self.images)
        tables = [*self._single_step(model), *self._iterative(model)]
        if adaptive:
            for name, setting in self.settings.adaptive.items():
                crafted = craft(model, self.images, self.labels, setting, self.work)
                tables.append(rows(model, self.images, crafted, self.labels, name, self.work))
        return pd.concat(tables, ignore_index=True)

    def _single_step(self, model: nn.Module) -> Iterator[pd.DataFrame]:
        """`x + eps * sign(mean gradient)`: one gradient serves all budgets."""
        draws = self.settings.draws if is_randomized(model) else 1
        cost = Cost()
        gradient = self._gradient(model, draws, cost)
        clean = self._answers("clean", model, self.images)
        for eps in self.settings.eps:
            adv = project(ascend(self.images, gradient, eps, "Linf"), self.images, eps, "Linf")
            pixels = to_pixels(adv, self.images, eps, "Linf")
            facts = {
                "index": range(len(self.labels)),
                "label": self.labels.numpy(),
                "attack": "fgsm",
                "eps": eps,
                "steps": 1,
                "draws": draws,
                "forwards": cost.forwards / len(self.labels),
                "gradients": cost.gradients / len(self.labels),
            }
            yield pd.DataFrame(facts | clean | self._answers("adv", model, pixels / 255))

    def _gradient(self, model: nn.Module, draws: int, cost: Cost) -> torch.Tensor:
        """The mean gradient of the cross-entropy over draws, by the model's own backward rule."""
        private, device, found = attack_copy(model, device_of(model)), device_of(model), []
        cost.watch(private)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(salted(self.work.seed, "protocol"))
            batches = zip(
                self.images.split(self.work.batch), self.labels.split(self.work.batch), strict=True
            )
            for x, y in batches:
                at, most = (x.to(device), y.to(device)), self.work.batch
                one, _ = expected_gradient(private, *at, cross_entropy, draws, most=most)
                found.append(one.cpu())
        return torch.cat(found)

    def _answers(self, side: str, model: nn.Module, images: torch.Tensor) -> dict[str, Any]:
        asked = Scoring(self.work.batch, self.settings.draws, "probabilities", self.work.seed)
        return answers(side, model, images, self.labels, asked)

    def _iterative(self, model: nn.Module) -> Iterator[pd.DataFrame]:
        for eps in self.settings.eps:
            setting = at_budget(self.settings.iterative, eps)
            crafted = craft(model, self.images, self.labels, setting, self.work)
            table = rows(model, self.images, crafted, self.labels, "iterative", self.work)
            yield table.assign(eps=eps)
