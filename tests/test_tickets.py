"""Tickets: kernel products, one initialization for all, exact masks, a search by its formula."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from masked import Around
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advprune.core.errors import UserError
from advprune.core.train_settings import TrainSettings
from advprune.models.checkpoint import build
from advprune.models.resnet import initialize
from advprune.models.spec import spec_of
from advprune.pruning import Data, prune
from advprune.pruning.masks import clear, layer_weights, magnitudes
from advprune.pruning.ticket_search import (
    Gauge,
    GaugeSettings,
    Search,
    SearchSettings,
    calibrate,
    kernel_products,
    mean_square,
    probing_vectors,
    trainable,
)
from advprune.pruning.tickets import Ticket, at_initialization
from conftest import make_network, same_weights

# --- kernel products ------------------------------------------------------------------------------


def jacobian(model, images, removed):
    """`[N, O, n]` of f(mask * w) by the trainable parameters; differentiable once more."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    keep = {n: (~removed[n]).to(p) if n in removed else 1.0 for n, p in parameters.items()}
    masked = {n: p * keep[n] + (p * (1 - keep[n])).detach() for n, p in parameters.items()}
    rows = []
    for image in images:
        logits = functional_call(model, masked, (image[None],))[0]
        for logit in logits:
            found = torch.autograd.grad(logit, list(parameters.values()), create_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).view(len(images), -1, rows[0].numel())


def exact_kernel(model, images, removed):
    """`Theta(clean, crafted)`, `[N, M, O, O]`."""
    rows, columns = (jacobian(model, x, removed) for x in images)
    return torch.einsum("iap,jbp->ijab", rows, columns)


@pytest.fixture(scope="module")
def small(digits):
    """A ResNet18 of width 2 with three classes, in float64."""
    return make_network(digits[0], width=2, classes=3).double()


@pytest.fixture(scope="module")
def images(digits):
    """Three clean images and, in place of attacked ones, two others; float64."""
    return digits[0][:3].double(), digits[0][5:7].double()


@pytest.fixture(scope="module")
def removed(small):
    """Every other weight of two layers."""
    names = "layer1.0.conv1.weight", "linear.weight"
    chosen = {name: torch.zeros_like(small.get_parameter(name)).bool() for name in names}
    for mask in chosen.values():
        mask.view(-1)[::2] = True
    return chosen


@pytest.fixture(scope="module")
def matrix(small, images, removed):
    """D `[N O, M O]`: the kernel without some weights from that with them."""
    change = exact_kernel(small, images, {}) - exact_kernel(small, images, removed)
    return change.permute(0, 2, 1, 3).reshape(9, 6).detach()


@pytest.mark.parametrize("masked", [False, True])
def test_products_are_those_of_single_backward_passes(small, images, removed, matrix, masked):
    gone = removed if masked else {}
    expected = exact_kernel(small, images, gone).detach()
    vectors = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    products = kernel_products(small, *images, vectors, gone)
    torch.testing.assert_close(products, torch.einsum("ijab,pjb->pia", expected, vectors))
    assert matrix.any()  # the mask matters


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.cdist(x, x), "forward AD with _cdist_forward"),
        (nn.functional.dropout, "random operation"),
    ],
)
def test_what_torch_cannot_differentiate_so_is_said_in_a_line(images, function, words):
    pair = (images[0].float(), images[1].float())
    model = Around(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), logits=function)
    outputs = len(model(pair[1])[0])
    with pytest.raises(UserError, match=f"kernel, which tickets need: .*{words}") as caught:
        kernel_products(model, *pair, torch.ones(1, 2, outputs), {})
    assert "\n" not in str(caught.value)


def by_products(small, images, removed, vectors):
    """`||D v_p||^2` of each vector, `[P]`."""
    with torch.no_grad():
        whole = kernel_products(small, *images, vectors, {})
        return (whole - kernel_products(small, *images, vectors, removed)).square().sum((1, 2))


def test_sign_vectors_are_unbiased_with_the_stated_variance_and_unit_vectors_exact(
    small, images, removed, matrix
):
    every = torch.tensor(list(product((-1.0, 1.0), repeat=6))).double().view(64, 2, 3)
    found, truth = by_products(small, images, removed, every), matrix.square().sum()
    torch.testing.assert_close(found.mean(), truth)
    gram = matrix.T @ matrix
    stated = 2 * (gram.square().sum() - gram.diagonal().square().sum())
    torch.testing.assert_close(found.var(unbiased=False), stated)
    outputs = torch.zeros(2, 3).double()
    units = probing_vectors(outputs, None, torch.Generator())
    assert units.shape == (6, 2, 3)
    torch.testing.assert_close(by_products(small, images, removed, units).mean(), truth)
    drawn, again, other = (
        probing_vectors(outputs, 500, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert drawn.dtype == torch.float64 and set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 4 / 3000**0.5
    assert torch.equal(again, drawn) and not torch.equal(other, drawn)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_products_and_their_gradients_never_form_a_jacobian(digits):
    model, images = make_network(digits[0], width=4), digits[0][:2]
    layer = max(p.numel() for p in model.parameters())
    outputs, generator = torch.zeros(2, 10), torch.Generator().manual_seed(0)

    for count in (1, 3):
        vectors = probing_vectors(outputs, count, generator)
        with Largest() as mode:
            found = kernel_products(model, images, images, vectors, {})
            torch.autograd.grad(found.square().sum(), model.layer1[0].conv1.weight)
        assert layer <= mode.numel <= count * layer  # a Jacobian has 2 * 10 layers


# --- tickets --------------------------------------------------------------------------------------
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
    how = {"search": SEARCH} if family == "AWT" else {}
    return {"sparsity": 0.9, "train": train, "gauge": GAUGE} | how | more


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


def test_magnitude_tickets_keep_the_largest_weights_of_each_layer_and_random_ones_any(data):
    dense = at_initialization(tiny(), replace(data, seed=1))
    pruned = prune("magnitude_ticket", tiny(), setting("magnitude_ticket"), data, seed=1)
    for name, weight in layer_weights(dense).items():
        gone = pruned.changed[name]
        assert weight[gone].abs().max() <= weight[~gone].abs().min()
        assert abs(int(gone.sum()) - 0.9 * gone.numel()) < 1
    gone = prune("random_ticket", tiny(), setting(""), data, seed=1).changed["3.weight"]
    sizes = dense.get_parameter("3.weight").detach().abs()
    assert abs(sizes[gone].mean() / sizes[~gone].mean() - 1) < 0.4  # of the others about 1/3


def smallest(weights):
    """80 % of each layer."""
    return Ticket(sparsity=0.8).smallest(magnitudes(weights))


def searching(data, model=None, **more):
    """A search of the smallest kind; keys of its settings may be changed."""
    dense, how = at_initialization(model or tiny(), data), SearchSettings(**(SEARCH | more))
    gauge = Gauge(dense, data, GaugeSettings(**how.model_dump(include=GaugeSettings.model_fields)))
    return Search(dense, gauge, smallest, how, data)


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
    row = gauge(sparse, removed)
    calibrate(sparse, few.images)  # as the gauge does with a copy
    whole = exact_kernel(dense, gauge.images, {}).detach()
    change = whole - exact_kernel(sparse, gauge.images, removed).detach()
    outputs = dense(clean).detach()
    moved = (outputs - sparse(clean).detach()).norm()
    for name, value in (
        ("kernel_distance", (change.norm() / whole.norm()) ** 2),
        ("output_distance", (moved / outputs.norm()) ** 2),
        ("output_norm", outputs.square().sum() / 4),
        ("kernel_norm", whole.square().sum() / 16),
    ):
        assert row[name] == pytest.approx(float(value), 1e-3), name


def is_calibrated(model, images):
    """Whether batch-norm has the statistics of what the convolution before it makes of them."""
    with torch.no_grad():
        maps = model[0](images).transpose(0, 1).flatten(1)  # [C, N * H * W]
    pairs = (model[1].running_mean, maps.mean(1)), (model[1].running_var, maps.var(1))
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in pairs)


def test_calibration_draws_nothing_and_changes_statistics_alone(data):
    model = nn.Sequential(*tiny()[:2], nn.Dropout(0.5), *tiny()[2:]).eval()
    model[1].momentum, before = 0.3, torch.get_rng_state()
    calibrate(model, data.images)
    assert torch.equal(torch.get_rng_state(), before) and is_calibrated(model, data.images)
    assert model[1].momentum == 0.3 and not any(part.training for part in model.modules())


def test_sparse_networks_are_measured_by_their_own_statistics(data):
    """By those of the dense network a ticket of a kernel distance of about 1 was given as 0.85."""
    gauge = Gauge(at_initialization(tiny(), data), data, GaugeSettings(**GAUGE))
    for family in ("AWT", "magnitude_ticket", "random_ticket"):
        found = prune(family, tiny(), setting(family), data)
        sparse = copy.deepcopy(found.model)
        calibrate(sparse, data.images)
        assert not is_calibrated(found.model, data.images)
        with torch.no_grad():
            far = mean_square(gauge.outputs - sparse(gauge.images[0])) / gauge.output_norm
        ticket, row = found.notes["ticket"], gauge(found.model, found.changed)
        assert row.items() <= ticket.items() and gauge(sparse, found.changed) == row
        assert ticket["output_distance"] == pytest.approx(float(far), 1e-4), family


def test_distances_of_all_tickets_are_measured_alike(data):
    """A search without steps gives the ticket of the largest weights."""
    few = {"sparsity": 0.5, "train": None}
    search = {"steps": 0, "batch": 4, "attack_steps": 1}
    searched = prune("AWT", tiny(), few | {"search": search}, data)
    control = prune("magnitude_ticket", tiny(), few, data)
    assert same(searched, control) and control.notes["ticket"]["kernel_distance"] > 0
    assert control.notes["ticket"].items() <= searched.notes["ticket"].items()


def test_the_search_comes_closer(data, monkeypatch):
    """By the statistics of batch-norm that it holds: with other ones it is another function."""
    monkeypatch.setattr("advprune.pruning.ticket_search.calibrate", lambda *_: None)
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


def test_the_search_attacks_its_images_by_their_labels(data):
    others = replace(data, labels=data.labels.roll(1))
    assert not same(*(prune("AWT", tiny(), setting("AWT"), d) for d in (data, others)))


def test_frozen_parameters_have_no_part_in_it(digits, images):
    model = make_network(digits[0], width=2, classes=3).double().requires_grad_(False)
    model.linear.bias.requires_grad_(True)
    assert list(trainable(model)) == ["linear.bias"]
    vectors = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    found = kernel_products(model, *images, vectors, {})  # the kernel is 1 where a = b
    torch.testing.assert_close(found, vectors.sum(1, keepdim=True).expand(1, 3, 3))
