"""Attacks reached by their method alone: NES, HopSkipJump, the student, classes of torchattacks."""

import random

import numpy as np
import pytest
import torch
from masked import Around
from torch import nn

from advprune.attacks import attack, pgd
from advprune.attacks.cost import Cost
from advprune.attacks.hopskipjump import hopskipjump
from advprune.attacks.losses import margin
from advprune.attacks.pgd import sizes
from advprune.attacks.registry import given, method_of, typed
from advprune.core.attack_settings import OtherAttack
from advprune.core.errors import UserError
from advprune.evaluate.craft import craft
from conftest import Linear, grey_images


def attacked(model, pair, method, **options):
    """What it finds within 0.05, if not said otherwise."""
    return attack(method, model, *pair, **{"eps": 0.05} | options)


def test_an_unknown_attack_is_refused_by_name(linear):
    with pytest.raises(ValueError, match="there is no attack 'fgms'; known: apgd, "):
        attacked(linear, (torch.rand(1, 1, 8, 8), torch.tensor([0])), "fgms")


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("L2", 0.3)])
def test_nes_comes_near_the_known_optimum_of_a_linear_model(linear, norm, eps):
    """The margin rises at most by `eps |w_other - w_y|` in the dual norm."""
    images, _ = grey_images(12)
    labels = linear(images).argmax(1)
    size = linear.worst(labels).flatten(1).norm(1 if norm == "Linf" else 2, dim=1)
    cost, sizes = Cost(), {"step": eps / 10, "sigma": 0.01, "steps": 40, "samples": 64}
    found = attacked(linear, (images, labels), "nes", norm=norm, eps=eps, cost=cost, **sizes)
    before, after = (margin(linear(x), labels).detach() for x in (images, found))
    right = after <= 0  # the others were let go as soon as they were fooled
    share = ((after - before) / (eps * size))[right]
    assert right.any() and share.min() > 0.9 and share.max() <= 1 + 1e-4
    assert ((before + eps * size > 0) | right).all()
    assert not cost.gradients and cost.forwards <= 12 * (1 + 40 * (2 * 64 + 1))


def test_nes_fools_where_there_is_no_gradient_and_does_not_depend_on_the_batch(network, digits):
    """A model behind rounding: right values, no gradient."""
    model = Around(network, images=lambda x: (x * 64).round() / 64)
    images = digits[0][:16]
    pair = images, model(images).argmax(1)
    blind = pgd(model, *pair, 0.05, 0.01, 10, random_start=False)
    assert (model(blind).argmax(1) == pair[1]).all()
    sizes = {"step": 0.0125, "sigma": 0.02, "steps": 10, "samples": 16}
    whole, parts = (attacked(model, pair, "nes", seed=4, batch=b, **sizes) for b in (16, 5))
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
        cost = Cost()
        found.append(attacked(network, digits, **setting, seed=3, pixels=True, cost=cost))
        assert cost.forwards and not cost.gradients
    assert not method_of(typed("a", OtherAttack(eps=0.1, **setting))).gradients
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


# --- HopSkipJump, and how far NES looks ----------------------------------------------------------
def two_sides():
    """Two classes, by the sign of a weighted sum of 36 pixels, and 12 images on both sides; in
    float64, where answers do not depend on how sums are rounded."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(36, generator=generator)
    w -= w.mean()
    images = 0.35 + 0.3 * torch.rand(12, 1, 6, 6, generator=generator)
    return Linear(torch.stack([-w, w]).double()), images.double()


@torch.no_grad()
def searched(queries, norm="L2", **options):
    """Distances of the images, which are those of what fools the model."""
    model, images = two_sides()
    labels = model(images).argmax(1)
    how = given("hopskipjump", eps=0.1, norm=norm, queries=queries, **options)
    adv, distances = hopskipjump(model, images, labels, *how)
    assert torch.allclose(sizes(adv - images, norm), distances)
    assert (model(adv).argmax(1) != labels)[distances.isfinite()].all() and len(labels.unique()) > 1
    return distances


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_distances_approach_the_closed_form_and_are_never_below_it(norm):
    model, images = two_sides()
    true = model.distance(images, model(images).argmax(1), norm)
    few, many = (searched(queries, norm) for queries in (300, 4000))
    assert (few >= true * (1 - 1e-5)).all() and (many >= true * (1 - 1e-5)).all()
    assert (many / true).median() < 1.05 < (few / true).median()


def test_no_image_costs_more_answers_than_it_may_and_the_size_of_a_batch_changes_nothing():
    cost = Cost()
    found = searched(600, cost=cost)
    assert 300 * 12 < cost.forwards <= 600 * 12
    assert torch.allclose(found, searched(600, batch=5), rtol=1e-3)


def test_what_is_wrong_already_and_what_nothing_fools():
    (model, images), never = two_sides(), Linear(torch.zeros(2, 36).double())
    wrong = 1 - model(images).detach().argmax(1)
    how = given("hopskipjump", eps=0.1, queries=400)
    for network, labels, far in ((model, wrong, 0.0), (never, torch.zeros(12).long(), torch.inf)):
        with torch.no_grad():
            adv, distances = hopskipjump(network, images, labels, *how)
        assert (distances == far).all() and torch.equal(adv, images)


@pytest.mark.parametrize(("norm", "sigma"), [("Linf", 0.02), ("L2", 0.5)])
def test_nes_looks_as_far_as_sigma_in_the_norm_of_the_budget(norm, sigma):
    images, labels = torch.full((2, 3, 16, 16), 128 / 255), torch.zeros(2, dtype=torch.int64)
    setting = {"method": "nes", "norm": norm, "eps": 1.0, "step": 0.0, "sigma": sigma, "steps": 1}
    never, seen = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), []
    never[1].weight.data.fill_(1 / 768)
    never[1].bias.data = torch.tensor([10.0, 0.0])  # cannot be fooled
    watched = Around(never, images=lambda x: seen.append(x.detach()) or x)
    craft(watched, images, labels, typed("it", OtherAttack.model_validate(setting)))
    changes = (torch.cat(seen) - 128 / 255).flatten(1)
    changes = changes[changes.std(1) > 1e-3]  # those that are no given image
    assert len(changes) == 2 * 2 * 32
    length = changes.std() if norm == "Linf" else changes.norm(dim=1).mean()
    assert 0.95 * sigma < length < 1.05 * sigma
