"""What every family promises: the given network untouched, seeds, exact files, refusals."""

import copy

import pytest
import torch

from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings
from advprune.models.card import nonzero_of, sparsity_of
from advprune.models.checkpoint import load_model, save_model
from advprune.models.spec import spec_of
from advprune.models.stochastic import is_randomized
from advprune.pruning import Data, families, prune
from conftest import make_network, same_weights

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
def small(digits):
    return make_network(digits[0], width=2)


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
        save_model(one, tmp_path / "model.safetensors")
        loaded = load_model(tmp_path / "model.safetensors")
        assert spec_of(loaded) == spec_of(one) and not loaded.training
        outputs = []
        for network in (one, loaded):
            torch.manual_seed(5)
            outputs.append(network(data.images))
        assert torch.equal(*outputs) and not torch.equal(outputs[0], small(data.images))
        differs = bool((loaded(data.images) != outputs[0]).any())
        assert is_randomized(loaded) == (name in RANDOM) == differs


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


@pytest.mark.parametrize("name", sorted({*TRAINED, *DRAWN} - {"AWT"}))  # that: test_tickets.py
def test_a_family_follows_its_seed(small, data, name):
    setting = (TRAINED | DRAWN)[name]
    one, again, other = (prune(name, small, setting, data, s).model for s in (1, 1, 2))
    assert same_weights(one, again) and not same_weights(one, other)


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
        ("S", 0, "sigmas.*greater than 0"),
        ("S", {"sigmas": 3, "gate": "maybe"}, "gate.*maybe"),
        ("R", float("nan"), "radius"),
        ("ESR", 3, "mapping"),
        ("Q", 3, "no family 'Q'; known: AWT, E, ESR, GAP"),
        ("clamp", 0, "sigmas.*greater than 0"),
        ("round", -1, "decimals.*-1"),
        ("SAP", 0, "fraction"),
        ("SAP", {"fraction": 1, "where": "weight"}, "where"),
        ("dropout", 1.0, "rate"),
        ("RNA", -1, "sigma"),
        ("random", {}, "either compression or sparsity"),
        ("random", {"compression": 2, "sparsity": 0.5}, "either compression or sparsity"),
        ("random", 0.5, "compression.*greater than or equal to 1.*0.5"),
        ("random", {"compression": 2, "finetune": {"epochs": 0}}, r"finetune\.epochs"),
        ("GAP_global", {"compression": 2, "steps": -1}, "steps.*-1"),
        ("filters", 1.0, "fraction.*less than 1"),
        ("filters", {"fraction": 0.5, "small": "maybe"}, "small"),
        ("LWM", 1.0, "sparsity.*less than 1"),
        ("LWM", {"sparsity": 0.5, "scores": {}}, "scores"),
        ("HYDRA", -0.1, "sparsity.*greater than or equal to 0"),
        ("HYDRA", {"sparsity": 0.5, "scores": {"method": "fgsm"}}, r"scores\.method.*fgsm"),
        ("AWT", {"sparsity": 0.5, "search": {"projections": 0}}, r"search\.projections"),
        ("AWT", {"sparsity": 0.5, "train": {"epochs": 0}}, r"train\.epochs"),
    ],
)
def test_wrong_settings_are_refused(small, name, setting, words):
    with pytest.raises(UserError, match=rf"prune\.{name}: .*{words}") as error:
        prune(name, small, setting)
    assert "\n" not in str(error.value)
