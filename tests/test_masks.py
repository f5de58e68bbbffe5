"""Masks: exactly what a ranking removes; GAP by summed gradients; HYDRA and LWM."""

import copy
import re
from dataclasses import replace
from fractions import Fraction
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from advprune.attacks import pgd
from advprune.core.device import salted
from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings, crossing
from advprune.pruning import Data, prune
from advprune.pruning.gap import GAP, published_gradients
from advprune.pruning.hydra import Scored, attach_scores, scaled
from advprune.pruning.masks import layers, prunable, select
from advprune.training.standard import Trainer, augment
from conftest import make_network, same_weights


def tiny():
    """Two convolutions, batch-norm, a hidden layer and a classifier, full of equal magnitudes."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 2, 2, bias=False),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.Linear(5, 4),
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        values = torch.randint(1, 5, parameter.shape, generator=generator)
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        parameter.data = (values * signs).float()
    return model


def ranked(scores, count, remove):
    """The first `count` of all (tensor, index) in order of score and then of place."""
    sign = 1 if remove == "smallest" else -1
    entries = [
        (sign * value, place, index, name)
        for place, (name, score) in enumerate(scores.items())
        for index, value in enumerate(score.flatten().tolist())
    ]
    return {(name, index) for _, _, index, name in sorted(entries)[:count]}


def brute_force(scores, count, scope, remove):
    """What goes, by sorting lists; per layer the count is shared out with exact fractions."""
    if scope == "global":
        return ranked(scores, count, remove)
    total = sum(score.numel() for score in scores.values())
    exact = {name: Fraction(count * score.numel(), total) for name, score in scores.items()}
    shares = {name: int(share) for name, share in exact.items()}
    while sum(shares.values()) < count:
        name = max(exact, key=lambda name: exact[name] - shares[name])  # the first of equal ones
        shares[name] += 1
    chosen = [ranked({name: scores[name]}, shares[name], remove) for name in scores]
    return set().union(*chosen)


def entries(masks):
    """Where masks are True."""
    return {
        (name, index)
        for name, mask in masks.items()
        for index, gone in enumerate(mask.flatten().tolist())
        if gone
    }


@pytest.mark.parametrize("count", [0, 1, 7, 20, 46, 83, 84])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("remove", ["smallest", "largest"])
def test_what_goes_is_what_sorting_lists_removes(count, scope, remove):
    scores = {name: p.detach() for name, p in prunable(tiny()).items()}
    assert sum(score.numel() for score in scores.values()) == 84 or count <= 84
    found = entries(select(scores, count, scope, remove))
    assert found == brute_force(scores, count, scope, remove) and len(found) == count


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77])
def test_magnitude_families_remove_the_smallest_magnitudes(scope, sparsity):
    model = tiny()
    scores = {name: p.detach().abs() for name, p in prunable(model).items()}
    pruned = prune(f"magnitude_{scope}", model, {"sparsity": sparsity})
    expected = brute_force(scores, round(sparsity * 84), scope, "smallest")
    assert entries(pruned.changed) == expected
    for name, parameter in pruned.model.named_parameters():
        dense, gone = model.get_parameter(name), pruned.changed[name]
        assert torch.equal(parameter, torch.where(gone, 0.0, dense))


def test_the_classifier_and_batch_norm_are_left_alone_and_random_scores_come_from_the_seed():
    model, generator = tiny(), torch.Generator().manual_seed(salted(1, "prune", "random"))
    assert list(prunable(model)) == ["0.weight", "0.bias", "2.weight", "4.weight", "4.bias"]
    pruned = prune("random", model, {"sparsity": 0.9}, seed=1)
    assert set(pruned.changed) == {name for name, _ in model.named_parameters()}
    drawn = {
        name: torch.rand(p.shape, generator=generator, dtype=torch.float64)
        for name, p in prunable(model).items()
    }
    assert entries(pruned.changed) == ranked(drawn, round(0.9 * 84), "smallest")


def test_the_highest_compression_is_named_and_can_be_reached(network):
    words = r"magnitude_global: compression 1000 .* can reach"
    with pytest.raises(UserError, match=words) as error:
        prune("magnitude_global", network, 1000)
    highest = float(re.findall(r"reach is ([\d.]+)", str(error.value))[0])
    total = sum(p.numel() for p in network.parameters())
    rest = total - sum(p.numel() for p in prunable(network).values())
    assert 0 <= total / rest - highest < 0.01
    prune("magnitude_global", network, highest)
    with pytest.raises(UserError, match="can reach"):
        prune("random", network, highest + 0.2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(network, value):
    network.layer1[0].conv1.weight.data[0, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"scores of layer1\.0\.conv1\.weight hold NaN or infinite"):
        prune("magnitude_global", network, 2)


# --- GAP and pruning by clean gradients -----------------------------------------------------------
TRAIN = TrainSettings(batch=16, eps=48 / 255, flip=True, crop=1)
SETTING = {"compression": 4, "steps": 3}
BUDGET = TRAIN.eps, crossing(3) * TRAIN.eps, 3


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


def is_removed(pruned, expected):
    """Whether these masks, and no others, were applied."""
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
    ("scope", "score", "remove"),
    [
        ("global", None, "largest"),
        ("global", "absolute", "smallest"),
        ("global", "product", "largest"),
        ("layer", None, "largest"),
        ("layer", "signed", "smallest"),
    ],
)
def test_gap_ranks_the_gradients_at_pgd_images(precise, data, scope, score, remove):
    family = f"GAP_{scope}"
    images = pgd(precise, data.images, data.labels, *BUDGET, generator=generator(family))
    gradients = per_image(precise, images, data.labels)
    expected = {
        "signed": gradients,
        "absolute": {n: g.abs() for n, g in gradients.items()},
        "product": {n: precise.get_parameter(n) * g for n, g in gradients.items()},
    }[score or {"global": "signed", "layer": "absolute"}[scope]]
    pruned = prune(family, precise, SETTING | {"score": score, "remove": remove}, data)
    count = sum(int(mask.sum()) for mask in pruned.changed.values())
    assert is_removed(pruned, select(expected, count, scope, remove))


def replay(model, data, seeded):
    """The published loop in its own terms: normalized images, `.grad` that nobody clears."""
    mean, std, model.normalize = model.normalize.mean, model.normalize.std, nn.Identity()
    model.train()
    eps, step, steps = BUDGET
    for rows in torch.randperm(len(data.images), generator=seeded).split(TRAIN.batch):
        x = (augment(data.images[rows], TRAIN.flip, TRAIN.crop, seeded) - mean) / std
        eta = (torch.rand(x.shape, generator=seeded).double() * 2 - 1) * eps
        predicted = model(x).argmax(1)
        for _ in range(steps):
            leaf = (x + eta).detach().requires_grad_()
            F.cross_entropy(model(leaf), predicted).backward()
            eta = (leaf.detach() + step * leaf.grad.sign() - x).clamp(-eps, eps)
        F.cross_entropy(model(x + eta), data.labels[rows]).backward()
    return {n: p.grad for n, p in model.named_parameters() if is_prunable(n)}


def test_published_is_the_published_loop(precise, data):
    model, theirs = copy.deepcopy(precise), copy.deepcopy(precise)
    found = published_gradients(model, replace(data, generator=generator()), GAP(**SETTING))
    expected = replay(theirs, data, generator())
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


def test_what_cannot_be_is_refused_before_anything_is_attacked(network, digits, monkeypatch):
    published = SETTING | {"published": True}
    with pytest.raises(UserError, match="at least two images"):
        prune("GAP_global", network, published, Data(digits[0][:1], digits[1][:1], TRAIN))
    seventeen = Data(digits[0][:17], digits[1][:17], TRAIN)  # a batch, and one image that is left
    prune("GAP_global", network, published, seventeen)
    monkeypatch.setattr("advprune.pruning.gap.pgd", lambda *_, **__: pytest.fail("attacked"))
    with pytest.raises(UserError, match="can reach"):
        prune("GAP_global", network, 1000, digits)


# --- HYDRA and LWM --------------------------------------------------------------------------------


ROBUST = TrainSettings(batch=32, eps=16 / 255)
BRIEF = {"method": "pgd", "epochs": 1, "lr": 0.5, "steps": 1}
BOTH = {"sparsity": 0.8, "scores": BRIEF, "finetune": BRIEF}


def sorted_out(scores, sparsity):
    """The indices that go, by sorting a list of (|s|, place)."""
    values = [(abs(value), place) for place, value in enumerate(scores.flatten().tolist())]
    count = int(sparsity * len(values) + 1e-9)
    return sorted(place for _, place in sorted(values)[:count])


def test_scores_start_as_published():
    weight = torch.tensor([[[[1.0, -4.0]]], [[[2.0, 0.0]]]])  # [2, 1, 1, 2]: fan-in 2
    expected = sqrt(3) * torch.tensor([[[[0.25, -1.0]]], [[[0.5, 0.0]]]])
    assert torch.allclose(scaled(weight), expected)
    assert torch.equal(scaled(torch.zeros(3, 3)), torch.zeros(3, 3))
    with pytest.raises(UserError, match="NaN or infinite cannot be ranked"):
        scaled(torch.tensor([[1.0, float("nan")]]))


def test_all_convolutions_and_linear_layers_are_pruned_and_nothing_else(small):
    pruned = prune("LWM", small, 0.7)
    weights = {name for name, p in small.named_parameters() if p.ndim > 1}
    assert {"conv1.weight", "linear.weight", "layer2.0.shortcut.0.weight"} <= weights
    for name, parameter in small.named_parameters():
        gone, after = pruned.changed[name], pruned.model.get_parameter(name)
        expected = sorted_out(parameter.detach(), 0.7) if name in weights else []
        assert gone.flatten().nonzero()[:, 0].tolist() == expected
        assert (after[gone] == 0).all() and torch.equal(after[~gone], parameter[~gone])


def test_the_gradient_goes_straight_through_to_scores_of_either_sign_by_hand():
    """y = (w * M) x with w = (2, -3, 0.5), s in proportion; half of three, so one, goes: 0.5."""
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, -3.0, 0.5]])
    (seen,) = attach_scores(nn.Sequential(layer), 0.5).values()
    x = torch.tensor([[5.0, 7.0, 11.0]])
    out = layer(x)
    assert out.item() == 2 * 5 - 3 * 7
    out.sum().backward()
    # dL/d(wM) = x; dL/ds = sign(s) w x, for the weight that is masked too
    assert torch.equal(seen.scores.grad, torch.tensor([[2.0 * 5, 3.0 * 7, 0.5 * 11]]))
    assert layer.parametrizations.weight.original.grad is None
    with torch.no_grad():
        seen.scores[0, 0] = 0.0
    assert layer(x).item() == 2 * 5 - 3 * 7  # the mask changes when it is refreshed, not before
    seen.refresh()
    assert layer(x).item() == -3 * 7 + 0.5 * 11
    seen = Scored(torch.tensor([1.0, -3.0, 2.0, -0.5]), 0.5)
    assert seen.kept.tolist() == [False, True, True, False]
    weight = torch.tensor([4.0, 5.0, 6.0, 7.0])
    seen(weight).sum().backward()
    assert seen.scores.grad.tolist() == [4.0, -5.0, 6.0, -7.0]


def test_weights_do_not_change_while_scores_are_trained(small, digits):
    scores = {"method": "trades", "epochs": 1, "lr": 1.0, "steps": 1}
    pruned = prune("HYDRA", small, {"sparsity": 0.5, "scores": scores}, Data(*digits, ROBUST))
    assert pruned.notes["moved"] > 0 and len(pruned.notes["scores"]) == 1
    for name, before in small.named_parameters():
        after, gone = pruned.model.get_parameter(name), pruned.changed[name]
        is_norm = before.ndim == 1 and name != "linear.bias"
        assert torch.equal(after[~gone], before[~gone]) != is_norm, name
        assert (after[gone] == 0).all()
        assert int(gone.sum()) == (int(0.5 * gone.numel()) if before.ndim > 1 else 0)
    assert not torch.equal(pruned.model.bn1.running_mean, small.bn1.running_mean)
    assert not parametrize.is_parametrized(pruned.model) and not pruned.model.training


def test_training_finds_the_mask_that_keeps_the_answer():
    """The class is pixel 0, whose weights are the smallest: magnitude drops them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data = torch.tensor([[0.5, 1.0, 1.0, 1.0], [-0.5, 1.0, 1.0, 1.0]])
    model[1].bias.data = torch.tensor([-0.25, 0.25])
    images = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0)).round()
    labels = 1 - images[:, 0, 0, 0].long()
    data = Data(images, labels, ROBUST)
    scores = {"method": "standard", "epochs": 20, "lr": 1.0}
    assert prune("LWM", model, 0.75).changed["1.weight"][:, 0].all()
    learned = prune("HYDRA", model, {"sparsity": 0.75, "scores": scores}, data)
    assert (~learned.changed["1.weight"]).nonzero().tolist() == [[0, 0], [1, 0]]
    assert torch.equal(learned.model(images).argmax(1), labels)
    assert learned.notes["moved"] == 1.0


def test_without_epochs_the_mask_is_that_of_least_magnitude(small):
    pruned = prune("HYDRA", small, {"sparsity": 0.999, "scores": {"epochs": 0}})
    least = prune("LWM", small, 0.999)
    assert not any(gone.all() for gone in least.changed.values())  # no layer loses all
    assert pruned.notes["moved"] == 0 and pruned.notes["scores"] == []
    assert same_weights(pruned.model, least.model) and is_removed(pruned, least.changed)


def test_masks_are_exact_after_every_batch_of_both_phases(small, digits, monkeypatch):
    seen, original = [], Trainer.__init__

    def look(model):
        zeros = {f"{n}.weight": (m.weight == 0).detach() for n, m in layers(model).items()}
        seen.append((parametrize.is_parametrized(model.conv1), zeros))
        for name, layer in layers(model).items() if seen[-1][0] else []:
            (mask,) = layer.parametrizations.weight
            assert mask.scores.grad is not None
            gone = (~mask.kept).flatten().nonzero()[:, 0].tolist()
            assert gone == sorted_out(mask.scores.detach(), 0.8), name

    def init(trainer, *args, after_step, **known):
        original(trainer, *args, after_step=lambda m: (after_step(m), look(m)), **known)

    monkeypatch.setattr(Trainer, "__init__", init)
    pruned = prune("HYDRA", small, BOTH, Data(*digits, ROBUST))
    batches = len(digits[0]) // ROBUST.batch
    assert [phase for phase, _ in seen] == [True] * batches + [False] * batches
    for is_scores, zeros in seen:
        for name, zero in zeros.items():
            assert int(zero.sum()) == int(0.8 * zero.numel()), name
            assert is_scores or torch.equal(zero, pruned.changed[name])


def test_fine_tuning_starts_from_the_pretrained_weights(small, digits):
    whisper = BOTH | {"finetune": BRIEF | {"lr": 1e-9}}
    pruned = prune("HYDRA", small, whisper, Data(*digits, ROBUST))
    for name, before in small.named_parameters():
        after, kept = pruned.model.get_parameter(name), ~pruned.changed[name]
        assert before.ndim < 2 or torch.allclose(after[kept], before[kept], atol=1e-6)
    assert list(pruned.model.state_dict()) == list(small.state_dict())


def test_the_weight_of_trades_reaches_the_training(small, digits):
    data, found = Data(*digits, ROBUST), []
    for beta in (0.0, 20.0):
        how = {"method": "trades", "epochs": 1, "lr": 0.1, "steps": 1, "beta": beta}
        pruned = prune("LWM", small, {"sparsity": 0.5, "finetune": how}, data)
        found.append(pruned.notes["finetune"][0]["train_loss"])
    assert found[0] != found[1]


def test_masks_of_a_parent_that_draws_come_from_the_seed(network, digits):
    """Whatever the global random state was."""
    found = []
    for state in (1, 2):
        parent = prune("SAP", copy.deepcopy(network), 1.0).model
        torch.manual_seed(state)
        found.append(prune("GAP_layer", parent, {"compression": 2}, digits, seed=3).model)
    assert same_weights(*found)
