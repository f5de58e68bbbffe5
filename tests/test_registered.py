"""Attacks reached by their method alone: NES, the student and the classes of torchattacks."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from advprune.attacks import pgd
from advprune.attacks.losses import margin
from advprune.attacks.registry import Context, method_of, typed
from advprune.core.attack_settings import OtherAttack
from advprune.core.errors import UserError


def attacked(model, pair, how=None, **setting):
    """What the registered attack of `method` finds."""
    s = typed("a", OtherAttack(**{"eps": 0.05} | setting))
    return method_of(s).function(model, *pair, s, how or Context())


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("L2", 0.3)])
def test_nes_comes_near_the_known_optimum_of_a_linear_model(linear, norm, eps):
    """The margin rises at most by `eps |w_other - w_y|` in the dual norm."""
    generator = torch.Generator().manual_seed(3)
    images = 0.5 + 0.2 * (torch.rand(12, 3, 4, 4, generator=generator) - 0.5)
    weight, labels = linear.weight.detach(), linear(images).argmax(1)
    size = (weight[1 - labels] - weight[labels]).norm(1 if norm == "Linf" else 2, dim=1)
    how, sizes = Context(), {"step": eps / 10, "sigma": 0.01, "steps": 40, "samples": 64}
    found = attacked(linear, (images, labels), how, method="nes", norm=norm, eps=eps, **sizes)
    before, after = (margin(linear(x), labels).detach() for x in (images, found))
    right = after <= 0  # the others were let go as soon as they were fooled
    share = ((after - before) / (eps * size))[right]
    assert right.any() and share.min() > 0.9 and share.max() <= 1 + 1e-4
    assert ((before + eps * size > 0) | right).all()
    assert not how.cost.gradients and how.cost.forwards <= 12 * (1 + 40 * (2 * 64 + 1))


class Stairs(nn.Module):
    """A model behind rounding: right values, no gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 64).round() / 64)


def test_nes_fools_where_there_is_no_gradient_and_does_not_depend_on_the_batch(network, digits):
    model, images = Stairs(network), digits[0][:16]
    pair = images, model(images).argmax(1)
    blind = pgd(model, *pair, 0.05, 0.01, 10, random_start=False)
    assert (model(blind).argmax(1) == pair[1]).all()
    sizes = {"step": 0.0125, "sigma": 0.02, "steps": 10, "samples": 16}
    sizes["method"] = "nes"
    whole, parts = (attacked(model, pair, Context(seed=4, batch=b), **sizes) for b in (16, 5))
    assert (model(whole).argmax(1) == pair[1]).float().mean() < 0.7
    assert ((whole - parts).abs() > 1e-5).float().mean() < 0.05
    assert (whole - images).abs().max() <= 0.05 + 1e-6


@pytest.mark.parametrize(
    "setting",
    [
        {"method": "nes", "step": 0.025, "sigma": 0.02, "steps": 2},
        {"method": "student", "rounds": 1, "steps": 2},
    ],
)
def test_attacks_by_answers_take_no_gradient_of_the_model_and_repeat(network, digits, setting):
    found = []
    for state in (1, 2):  # whatever the caller's random state is
        torch.manual_seed(state)
        how = Context(seed=3, pixels=True)
        found.append(attacked(network, digits, how, **setting))
        assert how.cost.forwards and not how.cost.gradients
    assert not method_of(typed("a", OtherAttack(eps=0.1, **setting))).differentiates
    assert torch.equal(*found) and ((found[0] * 255) - (found[0] * 255).round()).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["MIFGSM", "APGD", "FAB"])
def test_the_zoo_leaves_no_trace(network, digits, name):
    pair = digits[0][:8], digits[1][:8]
    network.train()
    torch.manual_seed(1)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    zoo = {"method": "torchattacks", "name": name, "arguments": {"eps": 0.1, "steps": 2}}
    adv = attacked(network, pair, **zoo)
    assert (adv - pair[0]).abs().max() <= 0.1 + 1e-5
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
    assert network.training and all(p.grad is None for p in network.parameters())
    assert torch.equal(adv, attacked(network, pair, **zoo))


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"name": "PGDD"}, "no attack 'PGDD'"),
        ({"name": "MIFGSM", "arguments": {"epsilon": 0.1}}, "takes no 'epsilon'; it takes eps"),
        ({"method": "nes", "step": 0.01, "sigma": 0}, "sigma"),
    ],
)
def test_settings_that_make_no_sense_are_refused(network, digits, setting, word):
    with pytest.raises(UserError, match=word):
        attacked(network, digits, **{"method": "torchattacks"} | setting)
