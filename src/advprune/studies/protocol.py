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
from advprune.core.attack_settings import AttackSettings, ProtocolSettings
from advprune.core.device import device_of, salted
from advprune.core.progress import progress
from advprune.core.settings import Name, Settings
from advprune.evaluate.craft import Work, at_budget, craft, rows
from advprune.evaluate.records import Scoring, answers
from advprune.models.border import admitted
from advprune.models.stochastic import is_randomized
from advprune.pruning import prune
from advprune.studies.base import Given, Tables, study
from advprune.training.inputs import Pair


class Member(Settings):
    """A model of the protocol: the given network, with a family applied to it or not.

    adaptive: whether it goes through the profile's `protocol.adaptive` attacks as well.
    """

    family: Name | None = None
    setting: Any = None
    adaptive: bool = False

    @property
    def is_published_sap(self) -> bool:
        """Whether it is SAP as published, not the variant on the outputs of convolutions."""
        on_convolutions = isinstance(self.setting, Mapping) and self.setting.get("where") == "conv"
        return self.family == "SAP" and not on_convolutions


class MemberSettings(Settings):
    """members: models of the protocol, by names of your own."""

    members: dict[Name, Member]

    def families(self) -> Iterator[tuple[str, str, Any]]:
        """Place, family and setting of each member that has one."""
        for name, member in self.members.items():
            if member.family is not None:
                yield f"members.{name}", member.family, member.setting


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
        self, dense: nn.Module, members: dict[str, Member], train: Pair, device: torch.device
    ) -> pd.DataFrame:
        """The records of all members (column `member`), made from the network `dense`.

        work.parts keeps the members that are finished.
        """

        def records(member: Member) -> pd.DataFrame:
            model = dense
            if member.family is not None:
                model = prune(member.family, dense, member.setting, train, self.work.seed).model
            return self.record(model.to(device), member.adaptive)

        computed = {name: partial(records, member) for name, member in members.items()}
        if self.work.parts:
            keep = self.work.parts.frame
            computed = {name: partial(keep, name, made) for name, made in computed.items()}
            long = [name for name, one in members.items() if one.family and one.adaptive]
            first = dict.fromkeys([*long, *members])
            ahead("protocol, members", [computed[name] for name in first])
        tables = []
        with progress("protocol, members", len(members)) as advance:
            for name, made in computed.items():
                tables.append(made().assign(member=name))
                advance(1)
        return pd.concat(tables, ignore_index=True)

    def record(self, model: nn.Module, adaptive: bool) -> pd.DataFrame:
        """Records of the single-step and the iterative attack at every budget (attack `fgsm`,
        `iterative`) and, where asked for, of the adaptive attacks by name."""
        model = admitted("protocol", model, self.images)

        def under(name: str, setting: AttackSettings) -> pd.DataFrame:
            crafted = craft(model, self.images, self.labels, setting, self.work)
            return rows(model, self.images, crafted, self.labels, name, self.work)

        chosen = self.settings
        tables = [*self._single_step(model)]
        for eps in chosen.eps:
            tables.append(under("iterative", at_budget(chosen.iterative, eps)).assign(eps=eps))
        tables += [under(*one) for one in chosen.adaptive.items() if adaptive]
        return pd.concat(tables, ignore_index=True)

    def _single_step(self, model: nn.Module) -> Iterator[pd.DataFrame]:
        """`x + eps * sign(mean gradient)` of the cross-entropy, over draws and by the model's own
        backward rule: one gradient serves all budgets."""
        images, labels, batch, cost = self.images, self.labels, self.work.batch, Cost()
        device, draws = device_of(model), self.settings.draws if is_randomized(model) else 1
        private, found = attack_copy(model, device), []
        cost.watch(private)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(salted(self.work.seed, "protocol"))
            for x, y in zip(images.split(batch), labels.split(batch), strict=True):
                at = x.to(device), y.to(device)
                found.append(expected_gradient(private, *at, cross_entropy, draws, most=batch)[0])
        gradient = torch.cat(found).cpu()
        asked = Scoring(batch, self.settings.draws, "probabilities", self.work.seed)
        clean = answers("clean", model, images, labels, asked)
        for eps in self.settings.eps:
            adv = project(ascend(images, gradient, eps, "Linf"), images, eps, "Linf")
            pixels = to_pixels(adv, images, eps, "Linf")
            facts = {
                "index": range(len(labels)),
                "label": labels.numpy(),
                "attack": "fgsm",
                "eps": eps,
                "steps": 1,
                "draws": draws,
                "forwards": cost.forwards / len(labels),
                "gradients": cost.gradients / len(labels),
            }
            yield pd.DataFrame(facts | clean | answers("adv", model, pixels / 255, labels, asked))
