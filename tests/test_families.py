"""What every family promises, and what the rules on single weights and feature maps do by hand."""

import copy
import math
import re
import textwrap

import pytest
import torch
from torch import nn
from workspace import ROOT

from advprune.core.device import salted
from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings
from advprune.models.card import nonzero_of, sparsity_of
from advprune.models.checkpoint import load_model, save_model
from advprune.models.spec import sites
from advprune.models.stochastic import is_randomized
from advprune.pruning import Data, families, prune
from advprune.pruning.threshold import add_noise, clamp_sigmas, zero_small
from conftest import same_weights, same_when_stored

TRAIN = TrainSettings(batch=16, eps=16 / 255)
BRIEF = {"method": "pgd", "epochs": 1, "steps": 1, "lr": 0.3}
HALF = {"compression": 2, "finetune": BRIEF}
TICKET = {"sparsity": 0.9, "train": BRIEF}
GAUGE = {"batch": 2, "attack_steps": 1}
SEARCH = {**GAUGE, "steps": 2, "refresh": 1}
PLAIN = {  # neither random nor trained
    "E": 0.05,
    "S": {"sigmas": 1, "gate": "none"},
    "clamp": 1,
    "round": 1,
    "filters": {"fraction": 0.5, "small": True},
}
RANDOM = {"SAP": 1.0, "dropout": 0.1, "RNA": 0.05}  # in every forward pass
DRAWN = {"R": 0.1, "ESR": {"E": 0.05, "S": 2, "R": 0.01}, "random": HALF}
MASKS = {
    **dict.fromkeys(("random", "magnitude_global", "magnitude_layer"), HALF),
    **dict.fromkeys(("gradient_global", "gradient_layer"), HALF),
    **dict.fromkeys(("GAP_global", "GAP_layer"), HALF | {"steps": 1}),
}
TRAINED = {
    **MASKS,
    "filters": {"fraction": 0.5, "finetune": BRIEF},
    "LWM": {"sparsity": 0.8, "finetune": BRIEF},
    "HYDRA": {"sparsity": 0.8, "scores": BRIEF, "finetune": BRIEF},
    "AWT": {**TICKET, "search": SEARCH},
    "random_ticket": {**TICKET, "gauge": GAUGE},
    "magnitude_ticket": {**TICKET, "gauge": GAUGE},
}


@pytest.fixture(scope="module")
def data(digits):
    return Data(digits[0][:32], digits[1][:32], TRAIN)


def test_every_family_is_tested_here():
    assert {*PLAIN, *RANDOM, *DRAWN, *TRAINED} == {*families()}


@pytest.mark.parametrize(("name", "setting"), [*PLAIN.items(), *RANDOM.items(), *DRAWN.items()])
def test_a_family_survives_saving_and_leaves_the_given_network_alone(
    small, data, tmp_path, name, setting
):
    before = copy.deepcopy(small)
    model = prune(name, small, setting, data).model
    twice = prune("round", model, 1).model  # families can be stacked
    assert same_weights(before, small) and not model.training
    for one in (model, twice):
        loaded = same_when_stored(one, data.images, tmp_path)
        first, second = loaded(data.images), loaded(data.images)
        assert not torch.equal(first, small(data.images))
        assert is_randomized(loaded) == (name in RANDOM) == bool((first != second).any())


@pytest.mark.parametrize(("name", "setting"), TRAINED.items())
def test_what_is_removed_stays_zero_through_training_and_in_the_file(
    small, data, tmp_path, name, setting
):
    frozen = copy.deepcopy(small).requires_grad_(False)  # no obstacle, and left as it was
    pruned = prune(name, frozen, setting, data)
    assert same_weights(small, frozen) and not any(p.requires_grad for p in frozen.parameters())
    assert len(pruned.notes["finetune"]) == 1 and not pruned.model.training
    save_model(pruned.model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    for key, weight in loaded.named_parameters():
        gone = pruned.changed[key]
        assert (weight[gone] == 0).all()
        assert gone.all() or not torch.equal(weight[~gone], small.get_parameter(key)[~gone])
        if weight.ndim > 1:
            assert torch.equal(weight == 0, gone)


@pytest.mark.parametrize("name", sorted({*TRAINED, *DRAWN}))
def test_a_family_follows_its_seed_alone(small, data, name):
    found = []
    for state, seed in enumerate((1, 1, 2)):
        torch.manual_seed(state)
        found.append(prune(name, small, (TRAINED | DRAWN)[name], data, seed).model)
    assert same_weights(*found[:2]) and not same_weights(*found[1:])


@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("name", MASKS)
def test_compression_is_exact(small, data, name, compression):
    setting = MASKS[name] | {"compression": compression, "finetune": None}
    pruned, total = prune(name, small, setting, data), sum(p.numel() for p in small.parameters())
    assert nonzero_of(pruned.model) == round(total / compression)
    assert sparsity_of(pruned.model) == pruned.ratio == 1 - round(total / compression) / total
    for key, weight in pruned.model.named_parameters():
        assert torch.equal(weight == 0, pruned.changed[key])


@pytest.mark.parametrize(("name", "setting"), (TRAINED | {"clamp": 1}).items())
def test_images_are_needed(small, name, setting):
    with pytest.raises(UserError, match=f"{name}: this family learns from training images"):
        prune(name, small, setting)


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("E", -1, "threshold.*greater than or equal to 0.*-1"),
        ("S", {"sigmas": 3, "gate": "maybe"}, "gate.*maybe"),
        ("R", float("nan"), "radius"),
        ("ESR", 3, "mapping"),
        ("Q", 3, "no family 'Q'; known: AWT, E, ESR, GAP"),
        ("round", -1, "decimals.*-1"),
        ("SAP", {"fraction": 1, "where": "weight"}, "where"),
        ("dropout", 1.0, "rate"),
        ("random", {}, "either compression or sparsity"),
        ("random", {"compression": 2, "sparsity": 0.5}, "either compression or sparsity"),
        ("random", {"compression": 2, "finetune": {"epochs": 0}}, r"finetune\.epochs"),
        ("filters", 1.0, "fraction.*less than 1"),
        ("LWM", {"sparsity": 0.5, "scores": {}}, "scores"),
        ("HYDRA", {"sparsity": 0.5, "scores": {"method": "fgsm"}}, r"scores\.method.*fgsm"),
        ("AWT", {"sparsity": 0.5, "search": {"projections": 0}}, r"search\.projections"),
    ],
)
def test_wrong_settings_are_refused(small, name, setting, words):
    with pytest.raises(UserError, match=rf"prune\.{name}: .*{words}") as error:
        prune(name, small, setting)
    assert "\n" not in str(error.value)


# --- E, S, R and ESR ------------------------------------------------------------------------------
def test_the_family_of_the_guide_for_contributors_is_one(small, data, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = textwrap.dedent(re.search(r"^ *```python\n(.*?)^ *```", text, re.M | re.S)[1])
    monkeypatch.setattr("advprune.pruning.family._REGISTRY", families())
    exec(code, {"__name__": "guide"})
    weights = dict(small.named_parameters())
    for name, w in prune("ternary", small, 0.02, data).model.named_parameters():
        expected = torch.where(weights[name].abs() >= 0.02, 0.02 * weights[name].sign(), 0.0)
        assert torch.equal(w, expected)


def test_e_and_s_by_hand():
    w = torch.tensor([-0.02, -0.01, -0.009, 0.0, 0.009, 0.01, 3.0])
    expected = torch.tensor([-0.02, -0.01, 0.0, 0.0, 0.0, 0.01, 3.0])  # |w| < E, not <=
    assert torch.equal(zero_small(w, 0.01), expected)
    w = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0])
    mean, sigma = 1.25, math.sqrt((7 * 1.25**2 + 8.75**2) / 8)
    expected = torch.tensor([0.0] * 7 + [mean + sigma])
    assert torch.allclose(clamp_sigmas(w, 1.0, "none", w), expected)


def test_s_is_gated_by_the_normality_test_as_the_published_code_does():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, generator=generator)
    skewed = torch.rand(2000, generator=generator) ** 6
    for w, clamped_by in ((normal, "normal"), (skewed, "non_normal")):
        for gate in ("normal", "non_normal"):
            changed = bool((clamp_sigmas(w, 1.5, gate, w) != w).any())
            assert changed == (gate == clamped_by)
    for w in (torch.arange(7.0), torch.ones(50)):  # too few or equal values: the default
        assert torch.equal(clamp_sigmas(w, 0.1, "non_normal", w), w)


def test_r_is_uniform_within_its_radius_on_every_parameter_and_no_running_statistic(network):
    noise = add_noise(torch.zeros(20000), 0.3, torch.Generator().manual_seed(0))
    assert noise.abs().max() <= 0.3 and abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 0.3 / math.sqrt(3)) < 0.005
    pruned = prune("R", network, 0.05, seed=3)
    before, after = network.state_dict(), pruned.model.state_dict()
    parameters = dict(network.named_parameters())
    assert {"bn1.weight", "bn1.bias", "linear.bias"} <= parameters.keys() and pruned.ratio == 1.0
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in parameters)


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


# --- clamp and round ------------------------------------------------------------------------------
def maps(model, images):
    """The output of every activation site."""
    found = {}
    handles = [
        site.register_forward_hook(lambda m, i, o, n=name: found.update({n: o.detach().clone()}))
        for name, site in sites(model).items()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def test_the_clamp_range_is_that_of_the_clean_maps_and_is_kept_on_any_input(network, digits):
    clamped = prune("clamp", network, {"sigmas": 1.5, "images": 64}, digits).model
    for name, h in maps(network, digits[0]).items():
        layer = sites(clamped)[name][-1]
        reach = 1.5 * h.double().std(correction=0)
        assert abs(float(layer.low) - float(h.double().mean() - reach)) < 1e-4
        assert abs(float(layer.high) - float(h.double().mean() + reach)) < 1e-4
    clamped = prune("clamp", network, 1, digits).model
    for name, h in maps(clamped, torch.ones_like(digits[0])).items():
        layer = sites(clamped)[name][-1]
        assert h.min() >= layer.low and h.max() <= layer.high
