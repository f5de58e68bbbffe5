"""Tickets: the same initialization for all, exact masks, a search that is what its formula says."""

import copy
from dataclasses import replace

import pytest
import torch
from test_kernel import exact_kernel
from torch import nn

from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings
from advprune.models.checkpoint import build
from advprune.models.resnet import initialize
from advprune.models.spec import spec_of
from advprune.pruning import Data, prune
from advprune.pruning.masks import clear, layer_weights, magnitudes
from advprune.pruning.ticket_search import Gauge, GaugeSettings, Search, SearchSettings, trainable
from advprune.pruning.tickets import Ticket, at_initialization
from conftest import make_network, same_weights

TRAIN = TrainSettings(batch=16, eps=16 / 255)
GAUGE = {"batch": 4, "attack_steps": 1}
SEARCH = {**GAUGE, "steps": 4, "refresh": 2}
ONE_EPOCH = {"method": "pgd", "epochs": 1, "steps": 1}


def tiny(classes=10):
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
def data(digits):
    return Data(digits[0][:32], digits[1][:32], TRAIN)


def setting(family, train=None, **more):
    """The smallest settings of a family, at 90 % sparsity."""
    how = {"search": SEARCH} if family == "AWT" else {"gauge": GAUGE}
    return {"sparsity": 0.9, "train": train} | how | more


def same(one, other):
    return same_weights(one.model, other.model)


@pytest.mark.parametrize("family", ["random_ticket", "magnitude_ticket"])
def test_tickets_start_from_the_dense_initialization(digits, data, family):
    trained = make_network(digits[0], width=2)
    expected = build(spec_of(trained))
    initialize(expected, torch.Generator().manual_seed(3))
    found = prune(family, trained, setting(family), data, seed=3)
    with torch.no_grad():
        whole = expected.train()(data.images)
    if family == "random_ticket":  # what training starts from
        dense = prune(family, trained, setting(family, sparsity=0), data, seed=3).model
        cosine = torch.cosine_similarity(dense(data.images).flatten(), whole.flatten(), 0)
        assert cosine > 0.999  # with batch-norm at mean 0 and variance 1 it was 0.7
    for name, parameter in found.model.named_parameters():
        first = expected.get_parameter(name)
        assert torch.equal(parameter, torch.where(found.changed[name], 0.0, first))


def test_magnitude_tickets_keep_the_largest_weights_of_each_layer(data):
    dense = at_initialization(tiny(), data)
    pruned = prune("magnitude_ticket", tiny(), setting("magnitude_ticket"), data)
    for name, weight in layer_weights(dense).items():
        gone = pruned.changed[name]
        assert weight[gone].abs().max() <= weight[~gone].abs().min()
        assert abs(int(gone.sum()) - 0.9 * gone.numel()) < 1


def test_random_tickets_ask_for_no_magnitude(data):
    gone = prune("random_ticket", tiny(), setting(""), data, seed=1).changed["3.weight"]
    initial = at_initialization(tiny(), replace(data, seed=1)).get_parameter("3.weight").detach()
    # Of magnitude_ticket the ratio is about 1/3.
    assert abs(initial[gone].abs().mean() / initial[~gone].abs().mean() - 1) < 0.4


def smallest(weights):
    """80 % of each layer."""
    return Ticket(sparsity=0.8).smallest(magnitudes(weights))


def searching(data, model=None, **more):
    """A search of the smallest kind; keys of its settings may be changed."""
    dense = at_initialization(model or tiny(), data)
    return Search(dense, smallest, SearchSettings(**(SEARCH | more)), data)


def test_the_gradient_of_a_step_is_that_of_the_formula(data):
    few = Data(data.images.double(), data.labels % 3, TRAIN)
    search = searching(few, tiny(3).double(), batch=2, gamma=3.0, l2=0.5, projections=None)
    search._refresh()
    student, gauge = search.student, search.gauge
    x, adv = few.images[3:5], few.images[5:7]
    search.backward((x, adv), torch.Generator())
    outputs = search.dense(gauge.images[0]).square().sum() / 2
    kernel = exact_kernel(search.dense, gauge.images, {}).square().sum() / 4
    loss = (search.dense(x) - student(x)).square().sum() / 2 / outputs
    change = exact_kernel(search.dense, (x, adv), {})
    change = change - exact_kernel(student, (x, adv), search.removed)
    loss = loss + 9 * change.square().sum() / 4 / kernel
    both = (layer_weights(one).values() for one in (student, search.dense))
    sizes = [sum(w.square().sum() for w in weights) for weights in both]
    masks = torch.cat([mask.flatten() for mask in search.removed.values()])
    loss = loss + 0.5 * sizes[0] / sizes[1].detach() / (~masks).double().mean()
    parameters = trainable(student)
    expected = torch.autograd.grad(loss, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        kept = ~search.removed.get(name, torch.zeros_like(gradient).bool())  # others stay at zero
        torch.testing.assert_close(parameter.grad[kept], gradient[kept], msg=name)


def test_the_gauge_is_the_exact_distance_with_all_unit_vectors(data):
    few = replace(data, labels=data.labels % 3)
    dense = at_initialization(tiny(3), few)
    gauge = Gauge(dense, few, GaugeSettings(**GAUGE, projections=None))
    clean, crafted = gauge.images
    assert (crafted - clean).abs().max() <= TRAIN.eps + 1e-6
    assert gauge(dense, {})["kernel_distance"] == gauge(dense, {})["output_distance"] == 0
    removed, sparse = smallest(layer_weights(dense)), copy.deepcopy(dense)
    clear(sparse, removed)
    whole = exact_kernel(dense, gauge.images, {}).detach()
    change = whole - exact_kernel(sparse, gauge.images, removed).detach()
    row, outputs = gauge(sparse, removed), dense(clean).detach()
    moved = (outputs - sparse(clean).detach()).norm()
    for name, value in (
        ("kernel_distance", (change.norm() / whole.norm()) ** 2),
        ("output_distance", (moved / outputs.norm()) ** 2),
        ("output_norm", outputs.square().sum() / 4),
        ("kernel_norm", whole.square().sum() / 16),
    ):
        assert row[name] == pytest.approx(float(value), 1e-3), name


def test_the_search_comes_closer(data):
    clean = TRAIN.model_copy(update={"eps": 0.0})
    few = replace(data, images=data.images[:4], labels=data.labels[:4], train=clean)
    _, _, rows = searching(few, steps=40, refresh=20, lr=0.05).run()
    assert [row["step"] for row in rows] == [0, 20, 40]
    assert rows[-1]["output_distance"] < 0.3 * rows[0]["output_distance"]
    assert rows[-1]["kernel_distance"] < 0.85 * rows[0]["kernel_distance"]


def test_what_a_step_may_change(data):
    """Removed weights stay zero and remember their value; a larger one comes back in its place."""
    search, name = searching(data), "3.weight"
    search._refresh()
    search._descend()
    weight, gone = search.student.get_parameter(name), search.removed[name]
    initial = search.dense.get_parameter(name)
    assert (weight[gone] == 0).all() and not torch.equal(weight[~gone], initial[~gone])
    assert torch.equal(search.parked[name][gone], initial[gone])
    place, count = tuple(gone.nonzero()[0]), sum(int(m.sum()) for m in search.removed.values())
    search.parked[name][place] = 100.0
    search._refresh()
    assert weight[place] == 100.0 and not search.removed[name][place]
    assert sum(int(mask.sum()) for mask in search.removed.values()) == count


def test_the_mask_is_not_chosen_in_the_last_period(data):
    chosen, search = [], searching(data, steps=9, refresh=2)
    choose = search.choose
    search.choose = lambda weights: chosen.append(search.step) or choose(weights)
    search.run()
    assert chosen == [0, 2, 4, 6]  # 8 would leave one step


def test_the_search_attacks_its_images_by_their_labels(data):
    others = replace(data, labels=data.labels.roll(1))
    assert not same(*(prune("AWT", tiny(), setting("AWT"), d) for d in (data, others)))


def test_a_search_says_whether_it_converged_on_images_it_did_not_see(data, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "advprune.pruning.ticket_search.pair",
        lambda model, batch, *_: seen.append(batch[0]) or (batch[0], batch[0]),
    )
    found = prune("AWT", tiny(), setting("AWT"), data).notes
    held, searched = data.images[:4], torch.cat(seen[1:])
    assert torch.equal(seen[0], held) and len(searched) == 4 * SEARCH["steps"]
    assert not any((image == searched).flatten(1).all(1).any() for image in held)
    assert found["ticket"] == found["search"][-1] | {"converged": False}
    monkeypatch.setattr("advprune.pruning.tickets.CONVERGED", 10.0)
    assert prune("AWT", tiny(), setting("AWT"), data).notes["ticket"]["converged"]
    control = prune("random_ticket", tiny(), setting("random_ticket"), data).notes["ticket"]
    assert "converged" not in control and control["kernel_distance"] > 0.3


def test_a_killed_search_goes_on_where_it_was(data, tmp_path, monkeypatch):
    def made(known, seed=0):
        return prune("AWT", tiny(), setting("AWT", ONE_EPOCH), known, seed)

    whole, kept = made(data), replace(data, state=tmp_path / "training.pt")
    assert not same(whole, made(data, seed=1))
    steps, descend = [], Search._descend

    def killed(self):
        steps.append(self.step)
        if steps.count(3) == 1 and self.step == 3:
            raise KeyboardInterrupt
        descend(self)

    monkeypatch.setattr(Search, "_descend", killed)
    with pytest.raises(KeyboardInterrupt):
        made(kept)
    resumed = made(kept)
    assert same(resumed, whole) and resumed.notes == whole.notes
    assert steps == [0, 1, 2, 3, 2, 3]  # kept at the choice of the mask
    monkeypatch.setattr(Search, "_descend", lambda _: pytest.fail("searched again"))
    (tmp_path / "training.pt").unlink()  # as if killed in the first epoch of training
    assert same(made(kept), whole)
    (tmp_path / "search-training.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"search-training.pt is damaged"):
        made(kept)


def test_tickets_are_trained_on_equal_batches(data, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        "advprune.pruning.masks.finetune", lambda *_, seed, **__: seeds.append(seed) or []
    )
    for family in ("random_ticket", "magnitude_ticket", "AWT"):
        prune(family, tiny(), setting(family, ONE_EPOCH), data, seed=4)
    assert len(set(seeds)) == 1 and len(seeds) == 3


def test_a_search_that_diverges_is_refused(data):
    search = searching(data)
    search.dense[-1].bias.data[0] = float("inf")
    with pytest.raises(UserError, match=r"the distance is not a number; lower search\.lr"):
        search.run()
