"""Masks: exactly the weights that a brute-force ranking removes, as many as asked for, for good."""

import re
from fractions import Fraction

import pytest
import torch
from torch import nn

from advprune.core.device import salted
from advprune.core.errors import UserError
from advprune.pruning import prune
from advprune.pruning.masks import prunable, select


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


def test_the_classifier_and_batch_norm_are_left_alone():
    assert list(prunable(tiny())) == ["0.weight", "0.bias", "2.weight", "4.weight", "4.bias"]
    pruned = prune("random", tiny(), {"sparsity": 0.9})
    kept = ("1.weight", "1.bias", "5.weight", "5.bias")
    assert set(pruned.changed) == {*prunable(tiny()), *kept}
    assert not any(pruned.changed[name].any() for name in kept)


def test_random_masks_are_of_the_generators_scores(network):
    one = entries(prune("random", network, 4, seed=1).changed)
    generator = torch.Generator().manual_seed(salted(1, "prune", "random"))
    drawn = {
        name: torch.rand(p.shape, generator=generator, dtype=torch.float64)
        for name, p in prunable(network).items()
    }
    assert one == ranked(drawn, len(one), "smallest")


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
