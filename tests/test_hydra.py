"""HYDRA and LWM: masks against sorted lists, gradients by hand, weights that stay as they were."""

from itertools import product
from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings
from advprune.pruning import Data, prune
from advprune.pruning.hydra import Scored, attach_scores, scaled, smallest
from advprune.pruning.masks import layers
from advprune.training.standard import Trainer
from conftest import make_network, same_weights, stored

TRAIN = TrainSettings(batch=32, eps=16 / 255)
BRIEF = {"method": "pgd", "epochs": 1, "lr": 0.5, "steps": 1}
BOTH = {"sparsity": 0.8, "scores": BRIEF, "finetune": BRIEF}


@pytest.fixture
def small(digits):
    return make_network(digits[0], width=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ranked(scores, sparsity):
    """The indices that go, by sorting a list of (|s|, place)."""
    values = [(abs(value), place) for place, value in enumerate(scores.flatten().tolist())]
    count = int(sparsity * len(values) + 1e-9)
    return sorted(place for _, place in sorted(values)[:count])


def test_what_goes_is_what_sorting_a_list_removes():
    shapes = ((3, 2, 3, 3), (10, 10), (1, 7), (1, 1))
    for shape, sparsity in product(shapes, (0.0, 0.1, 0.29, 0.5, 0.9, 0.99)):
        # few values, so that many are equal in magnitude, across the threshold too
        scores = torch.randint(-3, 4, shape, generator=generator(1)).float()
        found = smallest(scores, sparsity).flatten().nonzero()[:, 0].tolist()
        assert found == ranked(scores, sparsity)
    assert int(0.29 * 100) == 28 and int(smallest(torch.arange(100.0), 0.29).sum()) == 29


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
        expected = ranked(parameter.detach(), 0.7) if name in weights else []
        assert gone.flatten().nonzero()[:, 0].tolist() == expected
        assert (after[gone] == 0).all() and torch.equal(after[~gone], parameter[~gone])


def test_the_gradient_goes_straight_through_by_hand():
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


def test_scores_of_the_opposite_sign_count_by_their_magnitude():
    seen = Scored(torch.tensor([1.0, -3.0, 2.0, -0.5]), 0.5)
    assert seen.kept.tolist() == [False, True, True, False]
    weight = torch.tensor([4.0, 5.0, 6.0, 7.0])
    seen(weight).sum().backward()
    assert seen.scores.grad.tolist() == [4.0, -5.0, 6.0, -7.0]


def test_weights_do_not_change_while_scores_are_trained(small, digits):
    scores = {"method": "trades", "epochs": 1, "lr": 1.0, "steps": 1}
    pruned = prune("HYDRA", small, {"sparsity": 0.5, "scores": scores}, Data(*digits, TRAIN))
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
    images = torch.rand(64, 1, 2, 2, generator=generator()).round()
    labels = 1 - images[:, 0, 0, 0].long()
    data = Data(images, labels, TRAIN)
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
    for name, mask in least.changed.items():
        assert torch.equal(pruned.changed[name], mask)
        assert torch.equal(pruned.model.get_parameter(name), least.model.get_parameter(name))


def test_masks_are_exact_after_every_batch_of_both_phases(small, digits, monkeypatch):
    seen = []

    original = Trainer.__init__

    def look(model):
        zeros = {n: (m.weight == 0).detach() for n, m in layers(model).items()}
        seen.append((parametrize.is_parametrized(model.conv1), zeros))
        for name, layer in layers(model).items() if seen[-1][0] else []:
            (mask,) = layer.parametrizations.weight
            assert mask.scores.grad is not None
            gone = (~mask.kept).flatten().nonzero()[:, 0].tolist()
            assert gone == ranked(mask.scores.detach(), 0.8), name

    def init(trainer, *args, after_step, **known):
        def after(model):
            after_step(model)
            look(model)

        original(trainer, *args, after_step=after, **known)

    monkeypatch.setattr(Trainer, "__init__", init)
    pruned = prune("HYDRA", small, BOTH, Data(*digits, TRAIN))
    batches = len(digits[0]) // TRAIN.batch
    assert [phase for phase, _ in seen] == [True] * batches + [False] * batches
    for _, zeros in seen:
        for name, zero in zeros.items():
            assert int(zero.sum()) == int(0.8 * zero.numel()), name
    for name, zero in seen[-1][1].items():
        assert torch.equal(zero, pruned.changed[f"{name}.weight"])
        assert all(torch.equal(zero, later[name]) for phase, later in seen if not phase)


def test_fine_tuning_starts_from_the_pretrained_weights(small, digits):
    whisper = BOTH | {"finetune": BRIEF | {"lr": 1e-9}}
    pruned = prune("HYDRA", small, whisper, Data(*digits, TRAIN))
    for name, before in small.named_parameters():
        after, kept = pruned.model.get_parameter(name), ~pruned.changed[name]
        assert before.ndim < 2 or torch.allclose(after[kept], before[kept], atol=1e-6)
    assert list(pruned.model.state_dict()) == list(small.state_dict())


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_killed_run_goes_on(small, digits, tmp_path, epoch):
    """Two epochs each: killed after the given one in all, and run again."""
    setting = BOTH | {key: BRIEF | {"epochs": 2} for key in ("scores", "finetune")}
    whole = prune("HYDRA", small, setting, Data(*digits, TRAIN)).model
    data = Data(*digits, TRAIN, tmp_path / "a" / "training.pt")
    with stored(kill_after=epoch) as first:
        prune("HYDRA", small, setting, data)
    with stored() as rest:
        resumed = prune("HYDRA", small, setting, data)
    assert same_weights(resumed.model, whole)
    places = [tmp_path / "a" / "scores-training.pt", tmp_path / "a" / "training.pt"]
    assert first + rest == [places[0]] * 2 + [places[1]] * 2  # four epochs in both runs together
    assert [len(resumed.notes[key]) for key in ("scores", "finetune")] == [2, 2]


def test_the_weight_of_trades_reaches_the_training(small, digits):
    data, found = Data(*digits, TRAIN), []
    for beta in (0.0, 20.0):
        how = {"method": "trades", "epochs": 1, "lr": 0.1, "steps": 1, "beta": beta}
        pruned = prune("LWM", small, {"sparsity": 0.5, "finetune": how}, data)
        found.append(pruned.notes["finetune"][0]["train_loss"])
    assert found[0] != found[1]
