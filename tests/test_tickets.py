"""Tickets: the same initialization for all, exact masks, a search that is what its formula says."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings
from advprune.models.checkpoint import build, load_model, save_model
from advprune.models.resnet import initialize
from advprune.models.spec import spec_of
from advprune.pruning import Data, prune
from advprune.pruning.family import Pruned
from advprune.pruning.kernel import exact_kernel, trainable
from advprune.pruning.masks import clear
from advprune.pruning.ticket_search import (
    Gauge,
    GaugeSettings,
    Search,
    SearchSettings,
    magnitude_mask,
)
from advprune.pruning.tickets import at_initialization, dynamics, prunable_weights
from conftest import make_network

Pair = tuple[torch.Tensor, torch.Tensor]
TRAIN = TrainSettings(batch=16, eps=16 / 255, step=8 / 255)
GAUGE = {"batch": 4, "attack_steps": 1}
SEARCH = {**GAUGE, "steps": 4, "refresh": 2}
ONE_EPOCH = {"method": "pgd", "epochs": 1, "steps": 1}
FAMILIES = ("AWT", "NTT", "random_ticket", "magnitude_ticket", "inherited_ticket")


def tiny(classes: int = 10) -> nn.Module:
    """A network that takes milliseconds: two convolutions with batch-norm, and a classifier."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    for parameter in model.parameters():  # anything but an initialization
        nn.init.constant_(parameter, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def data(digits: Pair) -> Data:
    return Data(digits[0][:32], digits[1][:32], TRAIN)


def setting(family: str, train: Any = None, **more: Any) -> dict[str, Any]:
    """The smallest settings of a family, at 90 % sparsity."""
    if family in ("AWT", "NTT"):
        more = {"search": SEARCH} | more
    elif family != "inherited_ticket":
        more = {"gauge": GAUGE} | more
    return {"sparsity": 0.9, "train": train, **more}


def same(one: Pruned, other: Pruned) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(t, states[1][name]) for name, t in states[0].items())


@pytest.mark.parametrize("family", ["random_ticket", "magnitude_ticket"])
def test_tickets_start_from_the_initialization_of_the_dense_network(
    digits: Pair, data: Data, family: str
) -> None:
    trained = make_network(digits[0], width=2)
    expected = build(spec_of(trained))
    initialize(expected, torch.Generator().manual_seed(3))
    found = prune(family, trained, setting(family), data, seed=3)
    buffers = dict(expected.named_buffers())
    assert all(torch.equal(b, buffers[name]) for name, b in found.model.named_buffers())
    for name, parameter in found.model.named_parameters():
        first = expected.get_parameter(name)
        assert torch.equal(parameter, torch.where(found.changed[name], 0.0, first))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_exact_and_held_through_training(
    digits: Pair, data: Data, tmp_path: Path, family: str
) -> None:
    trained = make_network(digits[0], width=2)
    before = {name: t.clone() for name, t in trained.state_dict().items()}
    pruned = prune(family, trained, setting(family, ONE_EPOCH), data)
    total = sum(weight.numel() for weight in prunable_weights(pruned.model).values())
    count = 0 if family == "inherited_ticket" else round(0.9 * total)
    assert pruned.notes["removed"] == sum(int(g.sum()) for g in pruned.changed.values()) == count
    assert len(pruned.notes["finetune"]) == 1 and pruned.notes["prunable"] == total
    save_model(pruned.model, tmp_path / "model.safetensors")
    found, shares = load_model(tmp_path / "model.safetensors"), []
    for name, weight in prunable_weights(found).items():
        gone = pruned.changed[name]
        assert (weight[gone] == 0).all()
        shares.append(int(gone.sum()) - 0.9 * weight.numel())
    if count:  # the same share of each layer, the classifier too, and no other zeros
        assert all(abs(share) < 1 for share in shares)
        assert sum(int((w == 0).sum()) for w in prunable_weights(found).values()) == count
    assert all(torch.equal(t, before[name]) for name, t in trained.state_dict().items())


def test_magnitude_tickets_keep_the_largest_weights(data: Data) -> None:
    dense = at_initialization(tiny(), data)
    sizes = torch.cat([w.detach().abs().flatten() for w in prunable_weights(dense).values()])
    pruned = prune("magnitude_ticket", tiny(), setting("magnitude_ticket", scope="global"), data)
    gone = torch.cat([pruned.changed[name].flatten() for name in prunable_weights(dense)])
    assert sizes[gone].max() <= sizes[~gone].min()


def test_random_tickets_follow_the_seed_and_all_layers_alike(data: Data) -> None:
    one, again, other = (
        prune("random_ticket", tiny(), setting(""), data, seed=s) for s in (1, 1, 2)
    )
    assert same(one, again) and not same(one, other)
    initial = at_initialization(tiny(), replace(data, seed=1)).get_parameter("3.weight").detach()
    gone = one.changed["3.weight"]  # magnitude_ticket: a ratio of about 1/3
    assert abs(initial[gone].abs().mean() / initial[~gone].abs().mean() - 1) < 0.4


def searching(data: Data, model: nn.Module | None = None, **more: Any) -> Search:
    """A search of the smallest kind; keys of its settings may be changed."""
    dense = at_initialization(model or tiny(), data)
    names = tuple(prunable_weights(dense))
    count = round(0.8 * sum(w.numel() for w in prunable_weights(dense).values()))
    settings = SearchSettings(**(SEARCH | more))
    return Search(dense, names, count, "layer", settings, data, True, None)


def test_the_gradient_of_a_step_is_that_of_the_formula(data: Data) -> None:
    few = Data(data.images.double(), data.labels % 3, TRAIN)
    options = {"batch": 2, "gamma": 3.0, "projections": None, "together": 2}
    search = searching(few, tiny(3).double(), **options)
    gauge = Gauge.of(search.dense, few, search.setting, attacked=True)
    student = copy.deepcopy(search.dense)
    removed = magnitude_mask(prunable_weights(student), search.count, "layer")
    clear(student, removed)
    x, adv = few.images[3:5], few.images[5:7]
    search._descend(student, removed, (x, adv), gauge, torch.Generator())
    outputs = search.dense(gauge.clean).square().sum() / 2
    kernel = exact_kernel(search.dense, gauge.clean, gauge.crafted).square().sum() / 4
    loss = (search.dense(x) - student(x)).square().sum() / 2 / outputs
    change = exact_kernel(search.dense, x, adv) - exact_kernel(student, x, adv, removed)
    loss = loss + 9 * change.square().sum() / 4 / kernel
    parameters = trainable(student)
    expected = torch.autograd.grad(loss, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, msg=name)


def test_the_gauge_is_the_exact_distance_with_all_unit_vectors(data: Data) -> None:
    few = replace(data, labels=data.labels % 3)
    dense = at_initialization(tiny(3), few)
    options = GaugeSettings(**GAUGE, projections=None, together=5)
    gauge = Gauge.of(dense, few, options, attacked=True)
    assert (gauge.crafted - gauge.clean).abs().max() <= TRAIN.eps + 1e-6
    assert gauge(dense, {})["kernel_distance"] == gauge(dense, {})["output_distance"] == 0
    removed = magnitude_mask(prunable_weights(dense), 300, "layer")
    sparse = copy.deepcopy(dense)
    clear(sparse, removed)
    pair = gauge.clean, gauge.crafted
    whole = exact_kernel(dense, *pair).detach()
    change = whole - exact_kernel(sparse, *pair, removed).detach()
    row = gauge(sparse, removed)
    share = change.norm() / whole.norm()
    assert row["kernel_distance"] == pytest.approx(float(share**2), 1e-3)
    outputs = dense(gauge.clean).detach()
    change = (outputs - sparse(gauge.clean).detach()).norm() / outputs.norm()
    assert row["output_distance"] == pytest.approx(float(change**2), 1e-3)
    assert row["output_norm"] == pytest.approx(float(outputs.square().sum()) / 4, 1e-3)
    assert row["kernel_norm"] == pytest.approx(float(whole.square().sum()) / 16, 1e-3)


def test_the_search_comes_closer(data: Data) -> None:
    few = replace(data, images=data.images[:4], labels=data.labels[:4])
    search = replace(searching(few, steps=40, refresh=20, lr=0.05), attacked=False)
    _, _, rows = search.run()
    assert [row["step"] for row in rows] == [0, 20, 40]
    assert rows[-1]["output_distance"] < 0.3 * rows[0]["output_distance"]
    assert rows[-1]["kernel_distance"] < 0.85 * rows[0]["kernel_distance"]


def test_what_a_step_may_change(data: Data) -> None:
    """Removed weights stay zero and remember their value; a larger one comes back in its place."""
    search = searching(data)
    student = copy.deepcopy(search.dense)
    state, name = search._begin(student), "3.weight"
    gauge = Gauge.of(search.dense, data, search.setting, attacked=True)
    search._step(student, state, gauge)
    weight, gone = student.get_parameter(name), state.removed[name]
    initial = search.dense.get_parameter(name)
    assert (weight[gone] == 0).all() and not torch.equal(weight[~gone], initial[~gone])
    assert torch.equal(state.parked[name][gone], initial[gone])
    place = tuple(gone.nonzero()[0])
    state.parked[name][place] = 100.0
    search._choose(student, state)
    assert weight[place] == 100.0 and not state.removed[name][place]
    assert sum(int(mask.sum()) for mask in state.removed.values()) == search.count


def test_the_mask_is_not_chosen_in_the_last_period(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(Search, "_choose", lambda self, student, state: chosen.append(state.step))
    search = searching(data, steps=9, refresh=2)
    search.run()
    assert chosen == [0, 2, 4, 6]  # 8 would leave one step


def test_awt_sees_attacked_images_and_ntt_no_labels(data: Data) -> None:
    others = replace(data, labels=data.labels.roll(1))
    for family, differs in (("AWT", True), ("NTT", False)):
        one, two = (prune(family, tiny(), setting(family), d) for d in (data, others))
        assert same(one, two) != differs
    assert not same(
        prune("AWT", tiny(), setting("AWT"), data), prune("NTT", tiny(), setting("NTT"), data)
    )


def test_same_seed_same_ticket(data: Data) -> None:
    one, again, other = (
        prune("AWT", tiny(), setting("AWT", ONE_EPOCH), data, seed=s) for s in (1, 1, 2)
    )
    assert same(one, again) and one.notes == again.notes and not same(one, other)


def test_a_killed_search_goes_on_where_it_was(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prune("AWT", tiny(), setting("AWT", ONE_EPOCH), data)
    kept = replace(data, state=tmp_path / "training.pt")
    steps, step = [], Search._step

    def killed(self: Search, student: nn.Module, state: Any, gauge: Gauge) -> None:
        if state.step == 3 and state.step not in steps:
            steps.append(3)
            raise KeyboardInterrupt
        steps.append(state.step)
        step(self, student, state, gauge)

    monkeypatch.setattr(Search, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        prune("AWT", tiny(), setting("AWT", ONE_EPOCH), kept)
    assert same(prune("AWT", tiny(), setting("AWT", ONE_EPOCH), kept), whole)
    assert steps == [0, 1, 2, 3, 2, 3]  # kept at the choice of the mask
    monkeypatch.setattr(Search, "_step", lambda *_: pytest.fail("searched again"))
    (tmp_path / "training.pt").unlink()  # as if killed in the first epoch of training
    assert same(prune("AWT", tiny(), setting("AWT", ONE_EPOCH), kept), whole)
    (tmp_path / "training-search.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"search's state .* is damaged"):
        prune("AWT", tiny(), setting("AWT", ONE_EPOCH), kept)


def test_the_dense_heir_starts_as_the_small_network(data: Data, tmp_path: Path) -> None:
    still = {"method": "standard", "epochs": 1, "lr": 1e-12}
    kept = replace(data, state=tmp_path / "training.pt")
    first = prune("inherited_ticket", tiny(), setting("inherited_ticket", still), kept)
    assert {path.name for path in tmp_path.iterdir()} == {"training.pt", "training-small.pt"}
    total = sum(w.numel() for w in prunable_weights(first.model).values())
    assert first.notes["small"]["removed"] == round(0.9 * total) and first.ratio == 0
    zeros = sum(int((w.abs() < 1e-9).sum()) for w in prunable_weights(first.model).values())
    assert zeros == round(0.9 * total)  # next to no learning: still the small network
    learning = setting("inherited_ticket", ONE_EPOCH | {"lr": 0.1})
    grown = prune("inherited_ticket", tiny(), learning, data)
    left = sum(int((w == 0).sum()) for w in prunable_weights(grown.model).values())
    assert left < 0.5 * total  # the others learn, but for those of dead units


def test_tickets_are_trained_on_the_same_batches(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(
        "advprune.pruning.masks.finetune", lambda *_, seed, **__: seeds.append(seed) or []
    )
    for family in ("random_ticket", "magnitude_ticket", "NTT"):
        prune(family, tiny(), setting(family, ONE_EPOCH), data, seed=4)
    assert len(set(seeds)) == 1 and len(seeds) == 3


def test_the_probe_is_for_the_history_alone(digits: Pair, data: Data) -> None:
    training = {"method": "pgd", "epochs": 2, "steps": 1}
    plain = prune("random_ticket", tiny(), setting("", training), data)
    watched = replace(data, probe=(digits[0][32:], digits[1][32:]))
    probed = prune("random_ticket", tiny(), setting("", training), watched)
    assert same(plain, probed)
    assert [set(row) for row in dynamics(plain)] == [{"epoch", "loss"}] * 2
    rows = dynamics(probed)
    assert [row["epoch"] for row in rows] == [1, 2]
    with torch.no_grad():
        right = probed.model(digits[0][32:]).argmax(1) == digits[1][32:]
    assert rows[-1]["clean_accuracy"] == pytest.approx(float(right.float().mean()), abs=1e-4)
    harmless = replace(watched, train=TRAIN.model_copy(update={"eps": 0.0}))
    rows = dynamics(prune("random_ticket", tiny(), setting("", training), harmless))
    assert all(row["robust_accuracy"] == row["clean_accuracy"] for row in rows)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.0, "sparsity.*less than 1"),
        ({"sparsity": 0.5, "scope": "block"}, "scope"),
        ({"sparsity": 0.5, "search": {"projections": 0}}, r"search\.projections"),
        ({"sparsity": 0.5, "search": {"gamma": -1}}, r"search\.gamma.*-1"),
        ({"sparsity": 0.5, "train": {"epochs": 0}}, r"train\.epochs"),
    ],
)
def test_wrong_settings_are_refused(value: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"prune\.AWT: .*{words}"):
        prune("AWT", tiny(), value)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_needed(family: str) -> None:
    with pytest.raises(UserError, match=f"family {family} learns from training images"):
        prune(family, tiny(), 0.5)


def test_a_search_that_diverges_is_refused(data: Data) -> None:
    search = searching(data)
    search.dense[-1].bias.data[0] = float("inf")
    with pytest.raises(UserError, match=r"the distance is not a number; lower search\.lr"):
        search.run()
