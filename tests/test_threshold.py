"""E, S, R, ESR against tensors worked out by hand, and what they promise about the model."""

import math

import pytest
import torch
from torch import nn

from advprune.core.device import salted
from advprune.models.card import sparsity_of
from advprune.pruning import prune
from advprune.pruning.threshold import add_noise, clamp_sigmas, zero_small


def test_e_and_s_by_hand():
    w = torch.tensor([-0.02, -0.01, -0.009, 0.0, 0.009, 0.01, 3.0])
    expected = torch.tensor([-0.02, -0.01, 0.0, 0.0, 0.0, 0.01, 3.0])  # |w| < E, not <=
    assert torch.equal(zero_small(w, 0.01), expected)
    w = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0])
    mean, sigma = 1.25, math.sqrt((7 * 1.25**2 + 8.75**2) / 8)
    expected = torch.tensor([0.0] * 7 + [mean + sigma])
    assert torch.allclose(clamp_sigmas(w, 1.0, "none"), expected)


def test_s_is_gated_by_the_normality_test_as_the_published_code_does():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, generator=generator)
    skewed = torch.rand(2000, generator=generator) ** 6
    for w, clamped_by in ((normal, "normal"), (skewed, "non_normal")):
        for gate in ("normal", "non_normal"):
            changed = bool((clamp_sigmas(w, 1.5, gate) != w).any())
            assert changed == (gate == clamped_by)


@pytest.mark.parametrize("w", [torch.arange(7.0), torch.ones(50)])
def test_s_without_a_verdict_on_normality_follows_the_published_default(w):
    assert torch.equal(clamp_sigmas(w, 0.1, "non_normal"), w)


def test_r_is_uniform_within_its_radius():
    w = torch.zeros(20000)
    noise = add_noise(w, 0.3, torch.Generator().manual_seed(0))
    assert noise.abs().max() <= 0.3
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 0.3 / math.sqrt(3)) < 0.005


def test_every_weight_and_bias_is_touched_and_no_running_statistic(network):
    pruned = prune("R", network, 0.05, seed=3)
    before, after = network.state_dict(), pruned.model.state_dict()
    parameters = dict(network.named_parameters())
    assert "bn1.weight" in parameters and "bn1.bias" in parameters and "linear.bias" in parameters
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in parameters)
    assert pruned.ratio == 1.0


def test_e_ratio_and_sparsity_are_exact(network):
    values = torch.cat([p.flatten() for p in network.parameters()])
    threshold = 0.05
    pruned = prune("E", network, threshold)
    small, zero = values.abs() < threshold, values == 0
    assert pruned.ratio == int((small & ~zero).sum()) / len(values)
    assert sparsity_of(pruned.model) == int((small | zero).sum()) / len(values)
    for name, parameter in pruned.model.named_parameters():
        dense = network.get_parameter(name)
        assert torch.equal(parameter, torch.where(pruned.changed[name], 0.0, dense))


def test_esr_is_the_three_in_order_with_statistics_of_the_tensor_before():
    """Once zeros count, the deviation is smaller: of 0.02 sqrt(2) it would be 0.021."""
    model = nn.Linear(5000, 1, bias=False)
    generator = torch.Generator().manual_seed(0)
    laplace = torch.distributions.Laplace(0.0, 0.02).icdf(torch.rand(1, 5000, generator=generator))
    model.weight.data.copy_(laplace)
    setting = {"E": 0.05, "S": 2, "R": 0.0, "gate": "none"}
    found = prune("ESR", model, setting).model.weight
    limit = float(laplace.mean() + 2 * laplace.std(correction=0))
    assert 0.054 < limit < 0.058  # 2 sqrt(2) 0.02
    assert torch.isclose(found.max(), torch.tensor(limit))
    assert (found == 0).sum() == (laplace.abs() < 0.05).sum()
    noisy = prune("ESR", model, setting | {"R": 0.01}, seed=7).model.weight
    drawn = torch.Generator().manual_seed(salted(7, "prune", "ESR"))
    assert torch.equal(noisy, add_noise(found, 0.01, drawn))
