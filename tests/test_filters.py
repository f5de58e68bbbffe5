"""Filters: ranked by hand, gone with their readers, and the same network when made smaller."""

import json

import pytest
import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings
from advprune.models.audit import audit
from advprune.models.card import macs_of, nonzero_of, sparsity_of, write_card
from advprune.models.checkpoint import build, header_spec, save_model
from advprune.models.resnet import BasicBlock, initialize
from advprune.models.spec import ModelSpec, spec_of
from advprune.models.tensor_file import read_weights
from advprune.pruning import Data, prune
from advprune.pruning.filters import smallest_filters
from advprune.quantization.post_training import quantize
from conftest import FOREIGN, VIT, make_foreign, make_network, same_when_stored

TRAIN = TrainSettings(batch=16, eps=16 / 255)


def blocks(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, BasicBlock)}


def test_ranking_by_hand():
    sums = [3.0, 1.0, 2.0, 1.0, 5.0]
    weight = torch.tensor(sums).view(5, 1, 1, 1) * torch.tensor([0.5, -0.5]).view(1, 2, 1, 1)
    for fraction, expected in (
        (0.0, []),
        (0.19, []),
        (0.2, [1]),  # of equal ones the first
        (0.4, [1, 3]),
        (0.7, [1, 2, 3]),
        (0.99, [0, 1, 2, 3]),  # one stays
    ):
        assert smallest_filters(weight, fraction).nonzero()[:, 0].tolist() == expected
    assert int(0.29 * 100) == 28 and smallest_filters(torch.rand(100, 1, 1, 1), 0.29).sum() == 29
    assert smallest_filters(torch.rand(10, 1, 1, 1), 1 - 1e-16).sum() == 9


@pytest.mark.parametrize("fraction", [0.25, 0.9])
def test_a_filter_goes_with_its_norm_and_its_readers(network, fraction):
    pruned = prune("filters", network, fraction)
    expected = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in network.named_parameters()}
    for name, block in blocks(network).items():
        norms = [float(kernel.abs().sum()) for kernel in block.conv1.weight.detach()]
        for gone in sorted(range(len(norms)), key=norms.__getitem__)[: int(fraction * len(norms))]:
            expected[f"{name}.conv1.weight"][gone] = True
            expected[f"{name}.bn1.weight"][gone] = True
            expected[f"{name}.bn1.bias"][gone] = True
            expected[f"{name}.conv2.weight"][:, gone] = True
    assert expected.keys() == pruned.changed.keys()
    for name, parameter in pruned.model.named_parameters():
        assert torch.equal(pruned.changed[name], expected[name])
        assert torch.equal(parameter, network.get_parameter(name).masked_fill(expected[name], 0.0))


@pytest.mark.parametrize(
    ("architecture", "fraction"), [("resnet18", 0.0), ("resnet18", 0.9), ("resnet20", 0.3)]
)
def test_the_small_network_is_the_masked_one(digits, tmp_path, architecture, fraction):
    network = make_network(digits[0], architecture)
    masked = prune("filters", network, fraction)
    small = prune("filters", network, {"fraction": fraction, "small": True})
    assert torch.allclose(small.model(digits[0]), masked.model(digits[0]), atol=1e-5)
    assert small.ratio == masked.ratio == sparsity_of(masked.model)
    assert nonzero_of(small.model) == nonzero_of(masked.model)
    left = sum(p.numel() for p in small.model.parameters())
    total = sum(p.numel() for p in network.parameters())
    assert (total - left) / total == small.ratio
    twice = prune("filters", small.model, {"fraction": fraction, "small": True}).model
    for model in (small.model, twice, quantize(twice, digits[0])):
        same_when_stored(model, digits[0], tmp_path)
    assert spec_of(network).inner == () and "inner" not in spec_of(network).model_dump_json()


@pytest.mark.parametrize("family", ["clamp", "round", "SAP"])
def test_layers_that_other_families_put_in_stay(network, digits, tmp_path, family):
    base = prune(family, network, 1, digits).model
    masked, small = (
        prune("filters", base, {"fraction": 0.5, "small": small}).model for small in (False, True)
    )
    same_when_stored(small, digits[0], tmp_path)
    assert family == "SAP" or torch.allclose(masked(digits[0]), small(digits[0]), atol=1e-4)


def test_the_small_network_is_tuned_as_the_masked_one(network, digits):
    setting, data = {"fraction": 0.5, "finetune": {"epochs": 1, "lr": 1e-3}}, Data(*digits, TRAIN)
    masked, small = (
        prune("filters", network, setting | {"small": small}, data) for small in (False, True)
    )
    assert torch.allclose(small.model(digits[0]), masked.model(digits[0]), atol=1e-3)
    assert not torch.allclose(masked.model(digits[0]), network(digits[0]), atol=1e-1)
    assert small.ratio == masked.ratio and spec_of(small.model).inner[0] == 2


def test_the_card_holds_what_the_file_costs(network, digits, tmp_path):
    """Zeros and 8 bits save no multiplications, fewer filters do, and random layers draw none."""
    dense, half = macs_of(network, (1, 8, 8)), {"fraction": 0.5, "small": True}
    blocks_alone = dense - 64 * 9 * 4 - 32 * 10 - 16 * 4 * 8 - 4 * 8 * 16 - 16 * 32  # 1x1 shortcuts
    small = macs_of(prune("filters", network, half).model, (1, 8, 8))
    assert dense - small == blocks_alone / 2
    masked, noisy = (prune(*how).model for how in (("filters", network, 0.5), ("SAP", network, 1)))
    state = torch.random.get_rng_state()
    for model in (masked, noisy, quantize(network, digits[0])):
        assert macs_of(model, (1, 8, 8)) == dense
    assert torch.equal(torch.random.get_rng_state(), state)
    path = tmp_path / "model.safetensors"
    save_model(prune("magnitude_global", network, 8).model, path)
    write_card(path)
    assert json.loads((tmp_path / "model.json").read_text())["macs"] is None
    write_card(path, image_shape=(1, 8, 8))
    card = json.loads((tmp_path / "model.json").read_text())
    total = sum(p.numel() for p in network.parameters())
    assert (card["macs"], card["parameters"]) == (dense, total)
    assert card["nonzero"] == round(total / 8) and card["file_bytes"] == len(path.read_bytes())


def test_what_goes_with_a_filter_of_a_chain_by_hand():
    chain = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Conv2d(4, 4, 3, groups=4)),
        *(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)),
    ).eval()
    order = [2, 0, 3, 1]  # of the first convolution's filters, from the smallest on
    chain[0].weight.data = torch.tensor([2.0, 4, 1, 3]).view(4, 1, 1, 1).expand(4, 1, 3, 3).clone()
    chain[5].weight.data *= torch.tensor([1.0, 9, 9, 2, 9]).view(5, 1)
    pruned = prune("filters", chain, 0.5)
    gone = torch.tensor([k in order[:2] for k in range(4)])
    expected = {
        **{"0.weight": gone.view(4, 1, 1, 1), "0.bias": gone, "1.weight": gone, "1.bias": gone},
        **{"2.weight": torch.tensor([False]), "3.weight": gone.view(4, 1, 1, 1), "3.bias": gone},
    }
    columns, rows = gone.repeat_interleave(16), torch.tensor([1, 0, 0, 1, 0]).bool()
    expected |= {"5.weight": columns.view(1, -1) | rows.view(-1, 1), "5.bias": rows}
    expected |= {"7.weight": rows.view(1, -1), "7.bias": torch.zeros(3).bool()}
    for name, parameter in chain.named_parameters():
        assert torch.equal(pruned.changed[name], expected[name].expand_as(parameter)), name
    x = torch.rand(5, 1, 8, 8)
    small = prune("filters", chain, {"fraction": 0.5, "small": True}, (x, torch.arange(5) % 3))
    assert small.model[0].weight.shape == (2, 1, 3, 3) and small.model[5].weight.shape == (3, 32)
    assert torch.allclose(small.model(x), pruned.model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "root", "whole"),
    [
        ("torchvision/mobilenet_v2", "features.2.conv.0.0", "features.2.conv.2"),
        (VIT, "blocks.0.mlp.fc1", "blocks.0.attn.qkv"),
    ],
)
def test_any_architecture_made_small(tmp_path, name, root, whole):
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = make_foreign(name, x)
    setting, data = {"fraction": 0.5, "small": True}, Data(x, torch.arange(6) % 3, TRAIN)
    masked, small = prune("filters", network, 0.5, data), prune("filters", network, setting, data)
    assert torch.allclose(small.model(x), masked.model(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked.model(x), network(x), atol=1e-3)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (network, small.model))
    assert small.ratio == masked.ratio == 1 - after / before
    assert nonzero_of(small.model) == nonzero_of(masked.model)
    shapes = [
        [tuple(m.get_submodule(f"network.{n}").weight.shape) for n in (root, whole)]
        for m in (network, small.model)
    ]
    assert shapes[1][0][0] == shapes[0][0][0] // 2 and shapes[1][1][0] == shapes[0][1][0]
    twice = prune("filters", small.model, setting, data)
    for model in (small.model, twice.model, quantize(small.model, x)):
        same_when_stored(model, x, tmp_path)
        tensors, metadata = read_weights(tmp_path / "model.safetensors")
        assert audit(tensors, header_spec(metadata, "here")).sound
    initialize(twice.model, torch.Generator().manual_seed(3))  # as tickets do


@pytest.mark.parametrize(
    ("layer", "words"),
    [("features.0.0", "has .* outputs and inputs"), ("nowhere", "no layer 'nowhere'")],
)
def test_sizes_in_a_file_fit_the_network(layer, words):
    known = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "classes": 10, "sizes": {layer: (9, 3)}}
    name = "torchvision/mobilenet_v2"
    with pytest.raises(UserError, match=words):
        build(ModelSpec(architecture=name, options=FOREIGN[name], channels=3, **known))


def test_pruning_needs_outputs_that_are_only_read():
    with pytest.raises(UserError, match="no layer whose filters can be removed"):
        prune("filters", nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), 0.5)
    with pytest.raises(UserError, match="cannot be followed on an image"):
        prune("filters", nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten(), nn.Linear(2, 2)), 0.5)
