"""The minimum-norm attack against closed forms, a peer, and what it promises of each image."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from advprune.attacks import pgd
from advprune.attacks.cost import Cost
from advprune.attacks.minimum_norm import MinimumNormSettings, minimum_norm
from advprune.attacks.registry import Context, method_of, typed
from advprune.core.attack_settings import OtherAttack
from advprune.models.checkpoint import load_model
from advprune.models.stochastic import Stochastic, mean_logits
from advprune.pruning import prune
from conftest import Linear

NORMS = pytest.mark.parametrize("norm", ["Linf", "L2"])


@NORMS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_distances_of_a_linear_model_are_the_known_ones(norm, precision):
    """Of five classes, within 2 %."""
    model, images, labels, known = linear_problem(norm)
    found, distances = minimum_norm(
        model, images, labels, MinimumNormSettings(norm=norm, precision=precision)
    )
    assert (distances / known - 1).abs().max() < 0.02
    assert (distances > 0.999 * known).all() and (model(found).argmax(1) != labels).all()


def linear_problem(norm):
    """A model, images, labels and their known distances."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 48, generator=generator)
    images = 0.5 + 0.1 * (torch.rand(40, 3, 4, 4, generator=generator) - 0.5)
    model = Linear(weight)
    labels = model(images).argmax(1)
    return model, images, labels, model.distance(images, labels, norm)


class Noise(Stochastic):
    """Gaussian noise on every pixel: the mean logits of a linear model are those without it."""

    def noisy(self, h):
        return h + 0.05 * self.normal(h)


@NORMS
def test_distances_of_a_linear_model_behind_noise_are_those_of_its_mean(norm):
    """In closed form, within 5 %; of single draws near the border, every other one is wrong."""
    model, images, labels, known = linear_problem(norm)
    random = nn.Sequential(Noise(), model).eval()
    settings = MinimumNormSettings(norm=norm, restarts=2, draws=4, backward="identity", seed=3)
    found, distances = minimum_norm(random, images, labels, settings)
    far = known > known.quantile(0.2)  # the draws decide of the others whether they are right
    ratio = distances[far] / known[far]
    assert abs(ratio.mean() - 1) < 0.05 and ((ratio - 1).abs() < 0.05).float().mean() > 0.8
    assert (ratio - 1).abs().max() < 0.25
    single = (random(found).argmax(1) != labels)[far].float().mean()
    assert 0.2 < single < 0.8
    again = minimum_norm(random, images, labels, settings)
    assert again[0].equal(found) and again[1].equal(distances)


@pytest.mark.parametrize("family", ["SAP", "dropout"])
def test_a_random_model_is_no_farther_than_averaged_gradients_reach(family, digits):
    """At the median distance, PGD on ten draws breaks hardly more; for about as many passes."""
    weights = Path(__file__).parent.parent / "weights" / "digits"
    model = load_model(weights / "dense-standard.fp16.safetensors")
    random = prune(family, model, 1.0 if family == "SAP" else 0.1).model
    images, labels = (part[:24] for part in digits)
    cost, other = Cost(), Cost()
    how = MinimumNormSettings(steps=60, restarts=2, draws=2, backward="identity", cost=cost)
    _, distances = minimum_norm(random, images, labels, how)
    eps = float(distances.median())
    options = {"loss": "margin", "draws": 10, "backward": "identity", "cost": other}
    adv = pgd(random, images, labels, eps, eps / 12, 40, **options)
    with torch.no_grad():
        broken = mean_logits(random, adv, 100).argmax(1) != labels
    assert (distances <= eps).float().mean() >= broken.float().mean() - 0.08
    assert cost.forwards + cost.gradients < 1.2 * (other.forwards + other.gradients)


def test_the_method_notes_distances_and_stretches_to_the_budget():
    model, images, labels, known = linear_problem("Linf")
    setting = typed("d", OtherAttack(method="minimum_norm", eps=float(known.median())))
    context = Context()
    images_found = method_of(setting).function(model, images, labels, setting, context)
    distance = context.found["distance"]
    assert (distance / known - 1).abs().max() < 0.02
    size, inside = (images_found - images).flatten(1).abs().amax(1), distance <= setting.eps
    assert 10 < inside.sum() < 30 and (size[~inside] == 0).all()
    assert torch.allclose(size[inside], torch.tensor(setting.eps))


@NORMS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_image_fools_is_an_image_and_lies_at_its_distance(network, digits, norm, precision):
    images, labels = digits[0], network(digits[0]).argmax(1)
    labels[:5] = (labels[:5] + 1) % 10  # wrong from the start
    settings = MinimumNormSettings(norm=norm, steps=30, batch=24, precision=precision)
    found, distances = minimum_norm(network, images, labels, settings)
    change = (found - images).flatten(1)
    size = change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)
    assert distances.isfinite().all() and torch.allclose(size, distances)
    assert (distances[:5] == 0).all() and (distances[5:] > 0).all()
    assert (network(found).argmax(1) != labels).all()
    assert found.min() >= 0 and found.max() <= 1


def test_is_not_far_above_the_smallest_budget_at_which_pgd_fools(network, digits):
    images, labels = digits[0], network(digits[0]).argmax(1)
    _, distances = minimum_norm(network, images, labels, MinimumNormSettings(steps=60))
    for quantile in (0.3, 0.6, 0.9):
        eps = float(distances.quantile(quantile))
        adv = pgd(network, images, labels, eps, eps / 4, 30, loss="margin", drop=True)
        fooled = network(adv).argmax(1) != labels
        assert (fooled & (distances > 1.02 * eps)).float().mean() <= 0.05


@NORMS
def test_no_worse_than_the_same_attack_of_foolbox(network, digits, norm):
    foolbox = pytest.importorskip("foolbox")
    images, labels = digits[0], network(digits[0]).argmax(1)
    kind = foolbox.attacks.LInfFMNAttack if norm == "Linf" else foolbox.attacks.L2FMNAttack
    peer = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, theirs, _ = kind(steps=40)(peer, images, labels, epsilons=None)
    change = (theirs - images).flatten(1)
    size = change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)
    _, ours = minimum_norm(network, images, labels, MinimumNormSettings(norm=norm, steps=40))
    assert ours.median() <= 1.01 * size.median()


def test_a_model_that_nothing_fools_gives_infinite_distances_and_the_clean_images():
    model = Linear(torch.zeros(3, 12))
    images, labels = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)
    found, distances = minimum_norm(model, images, labels, MinimumNormSettings(steps=5))
    assert distances.isinf().all() and found.equal(images)


def test_cost_and_progress_are_as_promised(network, digits):
    pair, cost, done = (digits[0], network(digits[0]).argmax(1)), Cost(), list[int]()
    settings = MinimumNormSettings(steps=7, batch=20, cost=cost, progress=done.append)
    one = minimum_norm(network, *pair, settings)
    assert sum(done) == cost.gradients == 64 * 7 < cost.forwards
    other = minimum_norm(network, *pair, replace(settings, batch=64))
    assert (one[1].nan_to_num(posinf=1) - other[1].nan_to_num(posinf=1)).abs().max() < 0.02


def test_an_image_at_a_tie_has_a_distance_too(network, digits):
    """In mixed precision its margin is noise; found on a GPU, 25 times in 10,000 images."""
    image, other = digits[0][:1], digits[0][1:2]
    label = network(image).argmax(1)
    low, high = 0.0, 1.0
    for _ in range(18):  # to where the way to another digit leaves the class
        middle = (low + high) / 2
        inside = network(image + middle * (other - image)).argmax(1) == label
        low, high = (middle, high) if inside else (low, middle)
    tie = image + low * (other - image)
    settings = MinimumNormSettings(precision="bfloat16", steps=60)
    found, distances = minimum_norm(network, tie, label, settings)
    assert network(tie).argmax(1) == label != network(found).argmax(1)
    assert distances.isfinite().all() and distances < 0.05
