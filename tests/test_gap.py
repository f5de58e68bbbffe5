"""GAP and pruning by clean gradients, against gradients that are summed image by image."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advprune.attacks import pgd
from advprune.core.device import salted
from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings, crossing
from advprune.pruning import Data, prune
from advprune.pruning.gap import GAP, published_gradients
from advprune.pruning.masks import select
from advprune.training.standard import augment
from conftest import make_network

TRAIN = TrainSettings(batch=16, eps=48 / 255, flip=True, crop=1)
SETTING = {"compression": 4, "steps": 3}


@pytest.fixture
def precise(digits):
    """A ResNet18 of width 2 in float64, so that the order of sums does not matter."""
    return make_network(digits[0], width=2).double()


@pytest.fixture
def data(digits):
    """40 digits in float64: two batches and a half."""
    return Data(digits[0][:40].double(), digits[1][:40], TRAIN)


def generator(family="GAP_global"):
    """The generator that `prune` gives the family at seed 0."""
    return torch.Generator().manual_seed(salted(0, "prune", family))


def is_prunable(name):
    """Convolutions, also those of shortcuts; the only linear layer is the classifier."""
    return "conv" in name or name.endswith("shortcut.0.weight")


def per_image(model, images, labels):
    """The sum of the gradients of each image's loss, one image at a time."""
    weights = {name: p for name, p in model.named_parameters() if is_prunable(name)}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for x, y in zip(images, labels, strict=True):
        loss = -model(x[None]).log_softmax(1)[0, y]
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += gradient
    return total


def attacked(model, data, steps, family="GAP_global"):
    """The PGD images of a family's score at seed 0."""
    budget = TRAIN.eps, crossing(steps) * TRAIN.eps, steps
    return pgd(model, data.images, data.labels, *budget, generator=generator(family))


def is_removed(pruned, expected):
    """Whether these masks, and no others, were applied (test_masks.py tests `select`)."""
    return all(
        torch.equal(mask, expected.get(name, torch.zeros_like(mask)))
        for name, mask in pruned.changed.items()
    )


def test_the_clean_score_is_mean_gradient_times_weight(precise, data):
    gradients = per_image(precise, data.images, data.labels)
    scores = {n: (precise.get_parameter(n) * g / 40).abs() for n, g in gradients.items()}
    count = round(0.6 * sum(s.numel() for s in scores.values()))
    for scope in ("global", "layer"):
        pruned = prune(f"gradient_{scope}", precise, {"sparsity": 0.6}, data)
        assert is_removed(pruned, select(scores, count, scope))


@pytest.mark.parametrize(
    ("score", "remove"),
    [(None, "largest"), ("signed", "smallest"), ("absolute", "smallest"), ("product", "largest")],
)
def test_gap_global_ranks_the_gradients_at_pgd_images(precise, data, score, remove):
    gradients = per_image(precise, attacked(precise, data, 3), data.labels)
    expected = {
        None: gradients,
        "signed": gradients,
        "absolute": {n: g.abs() for n, g in gradients.items()},
        "product": {n: precise.get_parameter(n) * g for n, g in gradients.items()},
    }[score]
    pruned = prune("GAP_global", precise, SETTING | {"score": score, "remove": remove}, data)
    count = sum(int(mask.sum()) for mask in pruned.changed.values())
    assert is_removed(pruned, select(expected, count, "global", remove))


@pytest.mark.parametrize("score", [None, "signed"])
def test_gap_layer_ranks_each_tensor(precise, data, score):
    gradients = per_image(precise, attacked(precise, data, 3, "GAP_layer"), data.labels)
    pruned = prune("GAP_layer", precise, SETTING | {"score": score}, data)
    count = sum(int(mask.sum()) for mask in pruned.changed.values())
    scores = gradients if score else {n: g.abs() for n, g in gradients.items()}
    assert is_removed(pruned, select(scores, count, "layer", "largest"))


def replay(model, data, steps, seeded):
    """The published loop in its own terms: normalized images, `.grad` that nobody clears."""
    mean, std, model.normalize = model.normalize.mean, model.normalize.std, nn.Identity()
    model.train()
    step = crossing(steps) * TRAIN.eps
    for rows in torch.randperm(len(data.images), generator=seeded).split(TRAIN.batch):
        x = (augment(data.images[rows], TRAIN.flip, TRAIN.crop, seeded) - mean) / std
        eta = (torch.rand(x.shape, generator=seeded).double() * 2 - 1) * TRAIN.eps
        predicted = model(x).argmax(1)
        for _ in range(steps):
            leaf = (x + eta).detach().requires_grad_()
            F.cross_entropy(model(leaf), predicted).backward()
            eta = (leaf.detach() + step * leaf.grad.sign() - x).clamp(-TRAIN.eps, TRAIN.eps)
        F.cross_entropy(model(x + eta), data.labels[rows]).backward()
    return {n: p.grad for n, p in model.named_parameters() if is_prunable(n)}


def test_published_is_the_published_loop(precise, data):
    model, theirs = copy.deepcopy(precise), copy.deepcopy(precise)
    found = published_gradients(model, replace(data, generator=generator()), GAP(**SETTING))
    expected = replay(theirs, data, 3, generator())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-9 * largest), name
    for name, buffer in theirs.named_buffers():  # batch-norm has drifted in the same way
        assert torch.allclose(buffer.double(), model.get_buffer(name).double(), rtol=1e-9)
    pruned = prune("GAP_global", precise, SETTING | {"published": True}, data)
    clean = prune("GAP_global", precise, SETTING, data)
    before = precise.bn1.running_mean
    assert not torch.allclose(pruned.model.bn1.running_mean, before, rtol=1e-2)  # and for good
    assert torch.equal(clean.model.bn1.running_mean, before) and not pruned.model.training
    assert not is_removed(clean, pruned.changed)


def test_nothing_is_attacked_where_the_compression_is_out_of_reach(network, digits, monkeypatch):
    monkeypatch.setattr("advprune.pruning.gap.pgd", lambda *_, **__: pytest.fail("attacked"))
    with pytest.raises(UserError, match="can reach"):
        prune("GAP_global", network, 1000, digits)


def test_published_needs_two_images(network, digits):
    published = SETTING | {"published": True}
    with pytest.raises(UserError, match="at least two images"):
        prune("GAP_global", network, published, Data(digits[0][:1], digits[1][:1], TRAIN))
    seventeen = Data(digits[0][:17], digits[1][:17], TRAIN)  # a batch, and one image that is left
    prune("GAP_global", network, published, seventeen)
