"""The attack engine against closed forms, a peer's implementation and its own promises."""

import pytest
import torch
from torch import nn

from advprune.attacks import pgd
from advprune.attacks.losses import cross_entropy, dlr, margin
from advprune.attacks.pgd import project, random_point


def middle_images(n=6):
    """Images far from 0 and 1, so that only the budget binds."""
    images = 0.5 + 0.2 * (torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(3)) - 0.5)
    return images, torch.arange(n) % 2


def worst_direction(linear, labels):
    """Gradient of the other class's logit minus the label's, as images."""
    weight = linear.weight.detach()
    return (weight[1 - labels] - weight[labels]).view(-1, 3, 4, 4)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_known_optimum_of_a_linear_model_is_reached(linear, loss, norm):
    (images, labels), linf = middle_images(), norm == "Linf"
    sizes = (0.1, 0.03, 10) if linf else (0.3, 0.2, 40)
    direction = worst_direction(linear, labels)
    length = direction.abs() if linf else direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    adv = pgd(linear, images, labels, *sizes, norm=norm, loss=loss)
    assert torch.allclose(adv, images + sizes[0] * direction / length, atol=1e-6 if linf else 1e-4)


def test_parity_with_torchattacks_from_the_same_start(network, digits):
    """In float64, where no gradient is so near 0 that rounding turns its sign."""
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = network.double(), digits[0].double(), digits[1]
    torch.manual_seed(5)
    start = (images + torch.empty_like(images).uniform_(-0.2, 0.2)).clamp(0, 1)
    torch.manual_seed(5)
    peer = torchattacks.PGD(model, eps=0.2, alpha=0.05, steps=10, random_start=True)
    ours = pgd(model, images, labels, 0.2, 0.05, 10, start=start)
    assert (ours - peer(images, labels)).abs().max() < 1e-9


def test_adam_on_the_gradients_sign_is_that_of_torch(network, digits):
    """As the attack of Athalye et al. on SAP: from the darkest corner of the ball, projected after
    each step, the last point; the moments are those of the signs alone."""
    model, images, labels = network.double(), digits[0][:16].double(), digits[1][:16]
    x = nn.Parameter((images - 0.1).clamp(0, 1))
    optimizer = torch.optim.Adam([x], lr=0.01)
    for _ in range(25):
        (gradient,) = torch.autograd.grad(margin(model(x), labels).sum(), x)
        x.grad = -gradient.sign()
        optimizer.step()
        x.data = project(x.data, images, 0.1, "Linf")
    options = {"adam": True, "random_start": False, "loss": "margin"}
    assert (pgd(model, images, labels, 0.1, 0.01, 25, **options) - x).abs().max() < 1e-9
    with pytest.raises(ValueError, match="adam"):
        pgd(model, images, labels, 0.1, 0.01, 2, adam=True, momentum=0.5)


def test_a_sample_does_not_depend_on_the_batch_it_is_in(network, digits):
    images, labels = digits
    whole = pgd(network, images, labels, 0.2, 0.05, 3, batch=64)
    parts = pgd(network, images, labels, 0.2, 0.05, 3, batch=7)
    assert ((whole - parts).abs() > 1e-5).float().mean() < 0.01


def test_dropping_decided_samples_gives_the_same_verdict(network, digits):
    images, labels = digits
    labels = network(images).argmax(1)  # all right before the attack
    adv = pgd(network, images, labels, 0.02, 0.005, 10, keep="best", loss="margin")
    quick = pgd(network, images, labels, 0.02, 0.005, 10, keep="best", loss="margin", drop=True)
    wrong, quickly = (network(a).argmax(1) != labels for a in (adv, quick))
    assert torch.equal(wrong, quickly)
    assert 0 < int(wrong.sum()) < len(wrong)


def test_best_is_never_worse_than_last_and_restarts_never_hurt(network, digits):
    images, labels = digits

    def losses(**options):
        found = pgd(network, images, labels, 0.1, 0.1, 4, **options)
        return cross_entropy(network(found), labels)

    assert (losses(keep="best") >= losses(keep="last") - 1e-4).all()
    assert (losses(restarts=3) >= losses(restarts=1) - 1e-4).all()


def test_bfloat16_gradients_attack_nearly_as_well(network, digits):
    images, labels = digits[0], network(digits[0]).argmax(1)
    options = {"generator": None, "keep": "best", "loss": "margin"}
    exact, coarse = (
        pgd(network, images, labels, 0.02, 0.005, 10, precision=p, **options)
        for p in ("float32", "bfloat16")
    )
    assert coarse.dtype == torch.float32 and not torch.equal(exact, coarse)
    robust = [int((network(adv).argmax(1) == labels).sum()) for adv in (exact, coarse)]
    assert 0 < robust[0] < 64 and abs(robust[0] - robust[1]) <= 4


def test_progress_counts_every_image_step(network, digits):
    done = []
    pgd(network, *digits, 0.1, 0.02, 4, restarts=2, batch=10, progress=done.append)
    assert sum(done) == 64 * 4 * 2


def test_projection_is_the_nearest_point_of_the_ball():
    clean = torch.full((1, 1, 1, 2), 0.5)
    outside = torch.tensor([[[[0.9, 0.8]]]])
    assert torch.allclose(project(outside, clean, 0.1, "Linf"), clean + 0.1)
    expected = clean + 0.1 * torch.tensor([[[[0.8, 0.6]]]])  # a 3-4-5 triangle
    assert torch.allclose(project(outside, clean, 0.1, "L2"), expected)
    inside = clean + 0.01
    assert torch.allclose(project(inside, clean, 0.1, "L2"), inside)


def test_random_points_fill_the_ball_evenly():
    images = torch.full((4000, 1, 1, 2), 0.5)
    generator = torch.Generator().manual_seed(0)
    square = (random_point(images, 0.2, "Linf", generator) - images).flatten(1)
    assert square.abs().max() <= 0.2 + 1e-6
    assert abs(float(square.std()) - 0.2 / 3**0.5) < 0.005  # a uniform's standard deviation
    disc = (random_point(images, 0.2, "L2", generator) - images).flatten(1).norm(dim=1)
    assert disc.max() <= 0.2 + 1e-6
    assert abs(float((disc < 0.1).float().mean()) - 0.25) < 0.03  # half the radius, a quarter


def test_losses_by_hand():
    logits, labels = torch.tensor([[3.0, 1, 0, -1], [0, 2, 4, 1]]), torch.tensor([0, 1])
    assert torch.allclose(margin(logits, labels), torch.tensor([-2.0, 2.0]))
    assert torch.allclose(dlr(logits, labels), torch.tensor([-2 / 3, 2 / 3]))
    assert torch.allclose(dlr(logits * 100 + 7, labels), torch.tensor([-2 / 3, 2 / 3]))
    by_hand = torch.logsumexp(logits, 1) - torch.tensor([3.0, 2.0])
    assert torch.allclose(cross_entropy(logits, labels), by_hand)
    assert torch.allclose(dlr(logits[:, :2], labels), torch.tensor([-2.0, -2.0]))
