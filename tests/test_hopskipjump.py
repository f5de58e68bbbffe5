"""Searches by answers: HopSkipJump on linear models, whose distances are known, and at the ends of
what it may spend; how far NES looks."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from advprune.attacks.cost import Cost
from advprune.attacks.hopskipjump import HopSkipJumpSettings, hopskipjump
from advprune.attacks.opening import Options
from advprune.attacks.registry import typed
from advprune.core.attack_settings import OtherAttack
from advprune.evaluate.craft import craft


class Linear(nn.Module):
    """Two classes, by the sign of a weighted sum of 36 pixels; counts what it is asked."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(36, generator=generator))
        self.images = 0.35 + 0.3 * torch.rand(12, 1, 6, 6, generator=generator)
        self.b = nn.Parameter(-(self.images.flatten(1) @ self.w).mean().detach())

    def forward(self, x):
        score = (x.flatten(1) * self.w).sum(1) + self.b
        return torch.stack([-score, score], 1)


def found(model, queries, norm="L2", **options):
    images = model.images
    with torch.no_grad():
        labels = model(images).argmax(1)
    s = HopSkipJumpSettings(method="hopskipjump", eps=0.1, norm=norm, queries=queries)
    how = Options(norm=norm, **options)
    adv, distances = hopskipjump(model, images, labels, s, how)
    change = (adv - images).flatten(1)
    size = change.norm(dim=1) if norm == "L2" else change.abs().amax(1)
    assert torch.allclose(size, distances)
    with torch.no_grad():
        assert (model(adv).argmax(1) != labels)[distances.isfinite()].all()
    return distances


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_distances_approach_the_closed_form_and_are_never_below_it(norm):
    model = Linear()
    with torch.no_grad():
        score = model(model.images)[:, 1].abs()
        true = score / (model.w.norm() if norm == "L2" else model.w.abs().sum())
    few, many = (found(model, queries, norm) for queries in (300, 4000))
    assert (few >= true * (1 - 1e-5)).all() and (many >= true * (1 - 1e-5)).all()
    assert (many / true).median() < 1.05 < (few / true).median()


def test_no_image_costs_more_answers_than_it_may():
    model, cost = Linear(), Cost()
    found(model, 500, cost=cost)
    assert 300 * 12 < cost.forwards <= 500 * 12


def test_the_size_of_a_batch_changes_nothing():
    assert torch.allclose(found(Linear(), 600), found(Linear(), 600, batch=5), rtol=1e-3)


def test_what_is_wrong_already_and_what_nothing_fools():
    model = Linear()
    s = HopSkipJumpSettings(method="hopskipjump", eps=0.1, queries=400)
    with torch.no_grad():
        wrong = 1 - model(model.images).argmax(1)
    adv, distances = hopskipjump(model, model.images, wrong, s)
    assert (distances == 0).all() and torch.equal(adv, model.images)
    with torch.no_grad():
        model.b += 1000.0
    adv, distances = hopskipjump(model, model.images, torch.ones(12, dtype=torch.int64), s)
    assert distances.isinf().all() and torch.equal(adv, model.images)


class Watching(nn.Module):
    """Cannot be fooled; keeps what it was asked about."""

    seen: ClassVar[list[Tensor]] = []

    def forward(self, x):
        Watching.seen.append(x.detach())
        score = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([10 + score, score], 1)


@pytest.mark.parametrize(("norm", "sigma"), [("Linf", 0.02), ("L2", 0.5)])
def test_nes_looks_as_far_as_sigma_in_the_norm_of_the_budget(norm, sigma):
    images, labels = torch.full((2, 3, 16, 16), 0.5), torch.zeros(2, dtype=torch.int64)
    setting = {"method": "nes", "norm": norm, "eps": 1.0, "step": 0.0, "sigma": sigma, "steps": 1}
    Watching.seen.clear()
    craft(Watching(), images, labels, typed("it", OtherAttack.model_validate(setting)))
    changes = (torch.cat(Watching.seen) - 0.5).flatten(1)
    changes = changes[changes.std(1) > 1e-3]  # those that are no given image
    assert len(changes) == 2 * 2 * 32
    length = changes.std() if norm == "Linf" else changes.norm(dim=1).mean()
    assert 0.95 * sigma < length < 1.05 * sigma
