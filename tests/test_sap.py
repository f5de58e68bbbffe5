"""SAP and its controls: what is kept, what the mean is, and what the gradient is."""

from itertools import product

import pytest
import torch
from masked import Around
from torch import nn

from advprune import attacks, prune
from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.attacks.losses import cross_entropy
from advprune.attacks.opening import expected_gradient
from advprune.core.attack_settings import AttackSettings
from advprune.evaluate.craft import craft
from advprune.evaluate.records import Work
from advprune.models.insert import missed_activations, places
from advprune.models.stochastic import frozen_copy, stochastic_layers
from advprune.pruning.noise import AddedNoise, Dropout
from advprune.pruning.sap import StochasticPruning, keep_probability

CONV = {"fraction": 2.0, "where": "conv", "form": "poisson", "backward": "scale"}
H = torch.tensor([[0.0, 0.1, -0.4, 1.5], [2.0, 0.0, 0.0, 0.0]])


def many(layer, h, draws=20000):
    """Outputs of `draws` passes, `[D, ...]`, of one sample repeated."""
    torch.manual_seed(0)
    return layer(h.repeat(draws, *[1] * (h.ndim - 1))).view(draws, *h.shape)


# --- the rule ------------------------------------------------------------------------------------
def test_the_keep_probability_is_that_of_enumerated_draws():
    p, r = torch.tensor([0.5, 0.3, 0.2, 0.0]), 3
    brute = torch.zeros(4)
    for draw in product(range(4), repeat=r):
        chance = float(torch.stack([p[j] for j in draw]).prod())
        brute[list(set(draw))] += chance
    assert torch.allclose(keep_probability(p, r), brute, atol=1e-6)
    p = torch.tensor([1e-12, 1e-30, 1.0])
    q = keep_probability(p, 1000)
    assert torch.allclose(q[:2], 1000 * p[:2], rtol=1e-5) and q[2] == 1
    assert float(1 - (1 - p[0]) ** 1000) == 0  # what the formula as written would give


@pytest.mark.parametrize("form", ["multinomial", "independent"])
def test_both_forms_keep_with_the_same_probability(form):
    h = torch.rand(1, 30, generator=torch.Generator().manual_seed(1)) ** 3
    kept = (many(StochasticPruning(0.5, form), h) != 0).double().mean(0)
    q = keep_probability(h / h.sum(), 15).double()
    assert ((kept - q).abs() < 5 * (q * (1 - q) / 20000).sqrt() + 1e-9).all()


@pytest.mark.parametrize("form", ["multinomial", "independent", "poisson"])
def test_the_mean_over_draws_is_the_map(form):
    h = H[:1]
    found = many(StochasticPruning(1.0, form), h).double()
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - h).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("form", ["multinomial", "independent", "poisson"])
@pytest.mark.parametrize("backward", ["constant", "scale", "identity"])
def test_maps_of_zeros_and_of_one_value_are_safe(form, backward):
    h = torch.stack([torch.zeros(2, 3), torch.tensor([[0, 7.0, 0], [0, 0, 0]])]).requires_grad_()
    out = StochasticPruning(1.0, form, backward)(h)
    (gradient,) = torch.autograd.grad(out.sum(), h)
    assert torch.equal(out[0], torch.zeros(2, 3)) and torch.isfinite(gradient).all()
    # poisson: 7 / (1 - exp(-6))
    assert float(out[1, 0, 1].detach()) == pytest.approx(7.0, abs=0.02)


# --- backward rules ------------------------------------------------------------------------------
def gradient_of(layer, h):
    point = h.clone().requires_grad_()
    return torch.autograd.grad(layer(point).sum(), point)[0]


def frozen(backward, form="independent"):
    layer = StochasticPruning(2.0, form, backward)
    layer.frozen = 3
    return layer


def test_held_constant_the_gradient_is_the_mask_and_straight_through_it_is_one():
    h = torch.rand(5, 12, generator=torch.Generator().manual_seed(2)) + 0.1
    mask = frozen("constant")(h) / h
    assert torch.allclose(gradient_of(frozen("constant"), h), mask)
    assert (mask == 0).any() and (mask > 1).any()
    assert torch.equal(gradient_of(frozen("identity"), h), torch.ones(5, 12))
    assert torch.allclose(frozen("identity")(h), frozen("constant")(h))


@pytest.mark.parametrize("form", ["independent", "poisson"])
def test_through_the_scale_the_gradient_is_the_numerical_one(form):
    h = torch.rand(1, 12, generator=torch.Generator().manual_seed(2)).double() + 0.1
    layer, step = frozen("scale", form), 1e-6
    found = gradient_of(layer, h)
    for j in range(12):  # the same draws in every call: only the scale moves
        change = step * (torch.arange(12) == j)
        numerical = (layer(h + change) - layer(h - change)).sum() / (2 * step)
        assert float(found[0, j]) == pytest.approx(float(numerical), rel=1e-4, abs=1e-6)


# --- the other layers ----------------------------------------------------------------------------
def test_dropout_and_noise_have_their_rate_spread_and_mean():
    found = many(Dropout(0.25), torch.ones(1, 8))
    assert float((found == 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(found.double().mean()) == pytest.approx(1.0, abs=0.01)
    found = many(AddedNoise(0.3), torch.full((1, 8), 2.0)).double()
    assert float(found.mean()) == pytest.approx(2.0, abs=0.01)
    assert float(found.std()) == pytest.approx(0.3, rel=0.02)


# --- in a network --------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", [1.0, CONV], ids=["relu", "conv"])
def test_the_attack_copy_draws_alike(setting, network, digits):
    model = prune("SAP", network, setting).model
    private = attack_copy(model, torch.device("cpu"))
    assert len(stochastic_layers(private)) == len(stochastic_layers(model))
    with torch.no_grad():
        one, other = (frozen_copy(m)(digits[0][:8]) for m in (model, private))
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def test_the_variant_on_convolutions_sees_their_output(network, digits):
    model, seen = prune("SAP", network, CONV).model, []
    model.conv1.on_output.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    model(digits[0][:4])
    assert torch.allclose(seen[0], network.conv1(network.normalize(digits[0][:4])), atol=1e-6)
    assert (seen[0] < 0).any() and len(stochastic_layers(model)) == len(places(network, "conv"))


def test_frozen_draws_are_the_same_in_every_pass(network, digits):
    model, other = (frozen_copy(prune("SAP", network, 1.0).model, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        whole = model(digits[0])
        assert torch.equal(model(digits[0]), whole)
        assert torch.allclose(model(digits[0][7:9]), whole[7:9], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(other(digits[0]), whole)


def test_noise_of_a_family_is_not_that_of_the_initialization(network):
    """Equal seeds must not give equal streams: noise would be correlated with the weights."""
    noisy = prune("R", network, 0.5, seed=0).model
    stream = torch.Generator().manual_seed(0)
    for (_, w), (_, n) in zip(network.named_parameters(), noisy.named_parameters(), strict=True):
        raw = torch.rand(w.shape, generator=stream) * 2 - 1
        if w.numel() > 500:
            both = torch.stack([(n - w).detach().flatten(), raw.flatten()])
            assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2


# --- under attack --------------------------------------------------------------------------------
def test_averaging_draws_comes_closer_to_the_expected_gradient(network, digits):
    """The oracle is the mean of 200 draws; 30 draws are closer to it than one is."""
    model = attack_copy(prune("RNA", network, 0.3).model, torch.device("cpu"))
    images, labels = digits[0][:4], digits[1][:4]
    torch.manual_seed(0)
    truth, _ = expected_gradient(model, images, labels, cross_entropy, 200)
    errors = {1: 0.0, 30: 0.0}
    for draws in [*errors] * 5:
        found, _ = expected_gradient(model, images, labels, cross_entropy, draws)
        errors[draws] += float((found - truth).square().sum())
    assert errors[30] < errors[1] / 9


def test_attacks_on_random_models_are_repeatable(network, digits):
    model = prune("SAP", network, 1.0).model
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    found = [
        attacks.pgd(model, *digits, 0.1, 0.05, 3, generator=g, draws=2, backward="identity")
        for g in (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {layer.backward for layer in stochastic_layers(model)} == {"constant"}


def test_the_cost_of_an_attack_is_counted_and_no_sample_of_a_random_model_is_dropped(
    network, digits
):
    """Nor is its best iterate taken: both would reward a lucky draw."""
    pair, model = (digits[0][:10], digits[1][:10]), prune("SAP", network, 1.0).model
    for target, draws in ((network, 1), (model, 3)):
        cost = Cost()
        attacks.pgd(target, *pair, 0.1, 0.05, 4, draws=3, restarts=2, cost=cost)
        assert (cost.gradients, cost.forwards) == (20 * 4 * draws, 20 * 5 * draws)
    setting = AttackSettings(eps=0.1, step=0.05, steps=4, draws=2, keep="best", drop=True)
    cost = craft(model, *digits, setting, Work(draws=2)).cost
    assert (cost.gradients, cost.forwards) == (64 * 4 * 2, 64 * 4 * 2)


def test_a_model_that_cuts_its_graph_has_no_gradient_and_is_still_attacked(digits):
    model = Around(nn.Flatten(), images=torch.detach, logits=lambda z: z[:, :10])
    gradient, logits = expected_gradient(model, *digits, cross_entropy)
    assert not gradient.any() and logits.shape == (64, 10)


class Nested(nn.ReLU):
    """An activation that holds another, and then calls a function."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ReLU()

    def forward(self, x):
        return torch.relu(self.inner(x) - 0.1)


def test_functions_within_a_site_are_not_missed_though_it_holds_another():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), Nested(), nn.Flatten(), nn.Linear(8, 2))
    assert missed_activations(network, torch.rand(1, 1, 2, 2)) == []
