"""APGD against its authors' code step by step, closed forms, and what refilling promises."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from advprune.attacks.apgd import APGDSettings, apgd, targeted_dlr
from advprune.attacks.cost import Cost
from conftest import Linear, make_network


class Recorded(nn.Module):
    """A model that notes every batch it sees, also when it is copied."""

    seen: ClassVar[list[Tensor]] = []  # of all copies, on purpose

    def __init__(self, inside):
        super().__init__()
        self.inside = inside
        self.seen.clear()

    def forward(self, x):
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.inside(x)


@pytest.mark.parametrize(
    ("norm", "loss", "eps"), [("Linf", "ce", 0.2), ("L2", "ce", 1.0), ("Linf", "targeted", 0.2)]
)
def test_every_iterate_is_that_of_the_authors_code(network, digits, norm, loss, eps):
    """In float64, from the same starts, through four checks of the step size."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    images, labels = digits[0][:24].double(), digits[1][:24]
    model, steps = Recorded(network.double()), 25
    with torch.no_grad():
        target = network(images).scatter(1, labels[:, None], -torch.inf).argmax(1)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3)).double() - 0.5
    start = (images + 0.1 * noise).clamp(0, 1)
    kind = package.APGDAttack if loss == "ce" else package.APGDAttack_targeted
    peer = kind(model, n_iter=steps, norm=norm, eps=eps, device=torch.device("cpu"))
    peer.init_hyperparam(images)
    peer.y_target = target
    best, _, best_loss, _ = peer.attack_single_run(images, labels, start)
    theirs = torch.stack(model.seen)
    model.seen.clear()
    how = {"norm": norm, "targets": 1, "start": start, "drop": False, "batch": 24}
    found = apgd(model, images, labels, APGDSettings(eps, steps, loss, **how))
    ours = torch.stack(model.seen)
    assert theirs.shape == ours.shape == (steps + 1, *images.shape)
    assert (ours - theirs).abs().max() < 1e-7
    assert (found - best).abs().max() < 1e-7
    halved = (best_loss.diff().abs() > 0).any() and (theirs.diff(dim=0).abs().amax((1, 2, 3, 4)))
    assert float(halved.min()) < eps  # the step did shrink: not a comparison of signs alone


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_breaks_exactly_what_can_be_broken_of_a_linear_model(loss, norm):
    model, images, labels = linear_problem()
    distance = model.distance(images, labels, norm)
    eps = float(distance.median())
    found = apgd(model, images, labels, APGDSettings(eps, 40, loss, norm=norm, targets=3, batch=7))
    broken = model(found).argmax(1) != labels
    assert broken[distance < 0.98 * eps].all() and not broken[distance > eps].any()


def linear_problem():
    """Two classes that compete and two far below; images away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 12, generator=generator)
    weight[2:] = 0.01 * weight[2:] - 2.0
    images = 0.5 + 0.1 * torch.rand(32, 3, 2, 2, generator=generator)
    model = Linear(weight)
    return model, images, model(images).argmax(1)


@pytest.mark.parametrize("loss", ["ce", "targeted"])
def test_what_is_found_depends_neither_on_the_batch_nor_on_the_order_of_the_queue(
    network, digits, loss
):
    images = digits[0].double()
    labels = network.double()(images).argmax(1)
    runs = 1 if loss == "ce" else 2  # of several runs of a sample, any may break it first
    settings = APGDSettings(0.02, 12, loss=loss, targets=2, restarts=runs)
    one = apgd(network, images, labels, replace(settings, batch=len(images)))
    few = apgd(network, images, labels, replace(settings, batch=9))
    assert (network(one).argmax(1) != labels).equal(network(few).argmax(1) != labels)
    still = network(one).argmax(1) == labels
    assert still.any() and not still.all()
    if loss == "ce":
        assert (one - few).abs().max() < 1e-6


def test_decided_samples_cost_nothing_and_the_batch_stays_full(network, digits):
    images, labels = digits[0], network(digits[0]).argmax(1)
    model = Recorded(network)
    cost, steps = Cost(), 0

    def count(done):
        nonlocal steps
        steps += done

    settings = APGDSettings(0.02, 12, batch=8, cost=cost, progress=count)
    found = apgd(model, images, labels, settings)
    sizes = [len(batch) for batch in model.seen]
    survivors = int((network(found).argmax(1) == labels).sum())
    assert 5 < survivors < 60
    assert survivors * 13 < cost.gradients == sum(sizes) < len(images) * 13 - 3 * (64 - survivors)
    assert steps == cost.gradients - len(images)  # the look at the start is no step
    assert set(sizes[: len(sizes) // 2]) == {8}


def test_in_pixels_broken_means_broken_after_rounding(network, digits):
    images = (digits[0] * 255).round() / 255
    eps = 20 / 255
    found = apgd(network, images, digits[1], APGDSettings(eps, 12, pixels=True, batch=16))
    wrong = network(found).argmax(1) != digits[1]
    levels = found[wrong] * 255
    assert wrong.any() and (levels - levels.round()).abs().max() < 1e-3
    assert (found - images).abs().max() <= eps + 1e-6


def test_bfloat16_returns_as_broken_only_what_float32_confirms(network, digits):
    settings = APGDSettings(0.15, 12, precision="bfloat16")
    found = apgd(network, *digits, settings)
    exact = apgd(network, *digits, replace(settings, precision="float32"))
    wrong, known = (network(x).argmax(1) != digits[1] for x in (found, exact))
    assert (wrong != known).float().mean() < 0.1


def test_a_model_that_draws_is_attacked_on_its_mean_and_never_dropped(digits):
    from advprune.pruning import prune

    model = prune("dropout", make_network(digits[0]), 0.1).model
    images, labels = digits[0][:16], digits[1][:16]
    cost = Cost()
    apgd(model, images, labels, APGDSettings(0.1, 4, draws=3, backward="identity", cost=cost))
    assert cost.gradients == 16 * 5 * 3


def test_the_targeted_loss_is_the_published_ratio():
    logits = torch.tensor([[5.0, 3.0, 2.0, 1.0, 0.0], [1.0, 4.0, 2.0, 3.0, 0.5]])
    found = targeted_dlr(logits, torch.tensor([[0, 2], [1, 3]]))
    assert torch.allclose(found, torch.tensor([-3 / (5 - 1.5), -1 / (4 - 1.5)]))


def test_two_classes_are_attacked_towards_the_other_one():
    """A linear model: the margin falls by `2 eps |w|_1`, which breaks the first image alone."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    images = torch.tensor([[0.55, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1]]).view(2, 1, 2, 2)
    found = apgd(model, images, torch.zeros(2).long(), APGDSettings(0.1, 20, "targeted"))
    assert model(found).argmax(1).tolist() == [1, 0]
