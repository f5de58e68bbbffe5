"""The published protocol of SAP, and attacks that know the defence, on one model.

Dhillon et al. (ICLR 2018), sections 3 and 4: FGSM whose gradient is averaged over 100 draws, and
predictions by the mean softmax over 100 draws, over the budget lambda. The adaptive attacks vary
the backward rule and the draws per step (Athalye et al., ICML 2018, section 5.3.1; the erratum by
Dhillon and Carlini, arXiv 2010.00071).
"""

from collections.abc import Iterator
from dataclasses import replace
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
from advprune.core.attack_settings import AttackSettings, ProtocolSettings
from advprune.core.device import device_of, salted
from advprune.core.params import Params
from advprune.core.settings import Name, Settings
from advprune.evaluate.craft import at_budget, craft, rows
from advprune.evaluate.protocol import ProtocolModel, pairs
from advprune.evaluate.records import Work, answers, scored
from advprune.evaluate.statistics import ALPHA, smallest_difference
from advprune.models.border import admitted
from advprune.models.stochastic import is_randomized, undisturbed
from advprune.pruning import prune
from advprune.studies.base import Given, Tables, study, too_few_images
from advprune.training.inputs import Data, Pair

SAP_GAIN = 0.122  # Dhillon et al. (2018), under one gradient step at 1/255


class Member(Settings):
    """A model of the protocol: the given network, with a family applied to it or not. adaptive:
    whether it goes through the attacks of `protocol.adaptive` as well."""

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


def underpowered(params: Params, typed: dict[str, MemberSettings]) -> Iterator[str]:
    """SAP beside its dense network, in the best case that no image is lost where some are gained;
    the budgets of an attack are corrected together."""
    models = [
        ProtocolModel(name, params.studies[key].of, one.family, one.setting, pd.DataFrame())
        for key, settings in typed.items()
        for name, one in settings.members.items()
    ]
    if typed and (norm := params.active().norm) != "Linf":
        yield f"{next(iter(typed))}: the protocol is of Linf, this profile of {norm}; leave it out"
        return
    chosen = params.active().protocol
    tests = sum(eps > 0 for eps in chosen.eps)
    if not (tests and any(pairs(models))):
        return
    least = partial(smallest_difference, 0, alpha=ALPHA / tests)
    if few := too_few_images(params, least, SAP_GAIN, chosen.images):
        images, enough = few
        yield (
            f"protocol.images: {images} images at {tests} budgets cannot show the published gain "
            f"of {100 * SAP_GAIN:.1f} points (McNemar, Holm, 80 % power); {enough} images can, or "
            "fewer budgets"
        )


@study("protocol", MemberSettings, underpowered, reads=("protocol", "train"))
def protocol(settings: MemberSettings, given: Given) -> Tables:
    """All members under the single-step, the iterative and the adaptive attacks."""
    chosen, members = given.profile.protocol, settings.members
    images, labels = (tensor[: chosen.images] for tensor in given.test)

    def records(member: Member) -> pd.DataFrame:
        model = given.model
        if member.family is not None:
            data = Data(*given.train, given.profile.train)
            model = prune(member.family, model, member.setting, data, given.work.seed).model
        known = (images, labels), chosen, given.work
        return recorded(model.to(given.device), member.adaptive, *known)

    # Those that take longest begin first.
    names = sorted(members, key=lambda name: not (members[name].family and members[name].adaptive))
    tables = given.finished("members", {name: partial(records, members[name]) for name in names})
    found = [tables[name].assign(member=name) for name in members]
    return {"records": pd.concat(found, ignore_index=True).assign(of=given.of)}


def recorded(
    model: nn.Module, adaptive: bool, test: Pair, chosen: ProtocolSettings, work: Work
) -> pd.DataFrame:
    """Records of the single-step and the iterative attack at every budget (attack `fgsm`,
    `iterative`) and, where asked for, of the adaptive attacks by name.

    The single step is `x + eps * sign(mean gradient)` of the cross-entropy, over draws and by the
    model's own backward rule: one gradient serves all budgets.
    """
    (images, labels), batch, cost = test, work.batch, Cost()
    model = admitted("protocol", model, images)
    device, draws = device_of(model), chosen.draws if is_randomized(model) else 1
    private, gradients = attack_copy(model, device), []
    cost.watch(private)
    with undisturbed(device, salted(work.seed, "protocol")):
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            at = x.to(device), y.to(device)
            found = expected_gradient(private, *at, cross_entropy, draws, most=batch)
            gradients.append(found[0].cpu())
    asked = replace(work, draws=chosen.draws, average="probabilities")
    asked = replace(asked, clean=answers("clean", model, images, labels, asked))
    passes = {side: total / len(labels) for side, total in vars(cost).items()}
    tables = []
    for eps in chosen.eps:
        adv = project(ascend(images, torch.cat(gradients), eps, "Linf"), images, eps, "Linf")
        pixels = to_pixels(adv, images, eps, "Linf")
        facts = {"attack": "fgsm", "eps": eps, "steps": 1, "draws": draws, **passes}
        table = scored(model, images, pixels / 255, labels, facts, asked)
        tables.append(table.drop(columns=["linf", "l2"]))

    def under(name: str, setting: AttackSettings) -> pd.DataFrame:
        crafted = craft(model, images, labels, setting, work)
        return rows(model, images, crafted, labels, name, work)

    for eps in chosen.eps:
        tables.append(under("iterative", at_budget(chosen.iterative, eps)).assign(eps=eps))
    tables += [under(*one) for one in chosen.adaptive.items() if adaptive]
    return pd.concat(tables, ignore_index=True)
