"""The bit-flip attack against brute force on networks small enough to try everything."""

import copy
from collections import Counter
from itertools import pairwise
from math import isclose

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from bits import Noisy, hamming, replay
from torch import nn

from advprune.attacks import bitflip
from advprune.attacks.bit_search import TYPES, FlipTrace, random_bits, random_flips, rank
from advprune.attacks.flip_objective import LEAK, LOST, FlipOptions, Objective
from advprune.attacks.stored_bits import Flip, StoredModel, decode, encode, place_values, store

WIDTHS = (8, 4, 1)


def tiny(seed=0):
    """A convolution of 18 weights and a classifier of 24, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double()
    return model


def tiny_images(n=12, seed=1):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).double()


def integers_of(stored):
    return {name: layer.integers().numpy() for name, layer in stored.layers.items()}


def turned(q, bit, bits):
    """The whole number that `q` becomes, worked out on a string of digits."""
    if bits == 1:
        return -q
    digits = list(format(q % 2**bits, f"0{bits}b"))
    digits[-1 - bit] = "1" if digits[-1 - bit] == "0" else "0"
    u = int("".join(digits), 2)
    return u - 2**bits if digits[0] == "1" else u


def loss_with(stored, images, labels, changed):
    """Cross-entropy of a model made afresh from the integers, with some of them changed."""
    model = copy.deepcopy(stored.model)
    for flip, q in changed.items():
        layer = stored.layers[flip.layer]
        value = q * layer.scale.expand_as(layer.codes).flatten()[flip.index]
        model.get_submodule(flip.layer).weight.data.view(-1)[flip.index] = value
    with torch.no_grad():
        return float(F.cross_entropy(model(images), labels))


def linear_gains(stored, images, labels):
    """What every single flip changes the linearized loss by, from central differences."""
    gains, h = {}, 1e-6
    for name, layer in stored.layers.items():
        weight = stored.model.get_submodule(name).weight.data.view(-1)
        scales = layer.scale.expand_as(layer.codes).flatten().tolist()
        for index, q in enumerate(layer.integers().flatten().tolist()):
            before, ends = float(weight[index]), []
            for sign in (1, -1):
                weight[index] = before + sign * h
                ends.append(loss_with(stored, images, labels, {}))
            weight[index] = before
            slope = (ends[0] - ends[1]) / (2 * h)
            for bit in range(layer.bits):
                change = (turned(q, bit, layer.bits) - q) * scales[index]
                gains[Flip(name, index, bit)] = slope * change
    return gains


def autograd_gradients(stored, images, labels):
    """dL/dW of every weight by autograd."""
    model = copy.deepcopy(stored.model).requires_grad_(True)
    F.cross_entropy(model(images), labels).backward()
    return {name: model.get_submodule(name).weight.grad for name in stored.layers}


# What is stored


@pytest.mark.parametrize("bits", range(2, 9))
def test_twos_complement_round_trip_of_all_integers(bits):
    q = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    codes = encode(q, bits)
    assert codes.tolist() == [v % 2**bits for v in q.tolist()]
    assert torch.equal(decode(codes, bits).long(), q)
    for code, value in zip(codes.tolist(), q.tolist(), strict=True):
        held = [v for i, v in enumerate(place_values(bits)) if code >> i & 1]
        assert sum(held) == value


def test_a_bit_that_is_flipped_back_is_no_difference():
    before, found = store(tiny(), 4), FlipTrace(store(tiny(), 4), FlipOptions())
    one, other = Flip("0", 3, 1), Flip("3", 0, 2)
    for flip in (one, other, one):
        found.commit([flip])
    assert found.table.hamming.tolist() == [1, 2, 1] and hamming(before, found.stored) == 1


def test_one_bit_is_the_sign_by_hand():
    assert encode(torch.tensor([-1, 1]), 1).tolist() == [0, 1]
    assert decode(torch.tensor([0, 1], dtype=torch.uint8), 1).tolist() == [-1, 1]
    assert place_values(1) == (2,)
    assert encode(torch.tensor([-1, -127, -128, 127]), 8).tolist() == [255, 129, 128, 127]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    model[1].weight.data = torch.tensor([[0.6, -0.3, 0.0], [-0.9, 0.6, 1.5]])
    layer, row = store(model, 1).layers["1"], store(model, 1, "channel")
    assert layer.integers().tolist() == [[1, -1, 1], [-1, 1, 1]]
    assert torch.allclose(layer.scale, torch.tensor(0.65))
    assert torch.allclose(row.model[1].weight, torch.tensor([[0.3, -0.3, 0.3], [-1, 1, 1]]))
    assert torch.equal(store(row.model, 1, "channel").model[1].weight, row.model[1].weight)


def test_rounding_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    model[1].weight.data = torch.tensor([[0.7, -0.26, 0.04], [-0.1, 0.0, 0.35]])
    stored = store(model, 4)  # s = 0.7 / 7
    assert stored.layers["1"].integers().tolist() == [[7, -3, 0], [-1, 0, 4]]  # 3.5: to even
    expected = torch.tensor([[7.0, -3, 0], [-1, 0, 4]]) * (torch.tensor(0.7) / 7)
    assert torch.equal(stored.model[1].weight, expected)
    assert torch.equal(stored.model[1].bias, model[1].bias)
    by_row = store(model, 4, "channel").layers["1"]
    assert by_row.integers()[1].tolist() == [-2, 0, 7]
    assert torch.allclose(by_row.scale.flatten(), torch.tensor([0.1, 0.05]))


@pytest.mark.parametrize("bits", [8, 5, 2, 1])
@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_the_weights_are_exactly_the_integers(network, bits, scale):
    stored = store(network, bits, scale)
    layers = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert set(stored.layers) == layers and {"conv1", "linear"} <= layers
    most = max(2 ** (bits - 1) - 1, 1)
    for name, layer in stored.layers.items():
        q = layer.integers()
        assert torch.equal(stored.weight(name), q.float() * layer.scale)
        assert q.abs().max() == most
        if bits > 1:
            error = (stored.weight(name) - network.get_submodule(name).weight).abs()
            assert (error <= layer.scale / 2 * 1.001).all()
    for name, tensor in network.state_dict().items():
        if not name.endswith(".weight") or "bn" in name:
            assert torch.equal(stored.model.state_dict()[name], tensor)


def test_a_layer_of_zeros_stays_zero_and_is_not_attacked():
    model = tiny()
    model[0].weight.data.zero_()
    stored = store(model, 8)
    stored.flip(Flip("0", 3, 7))
    assert not stored.model[0].weight.any() and stored.model[0].weight.isfinite().all()
    assert set(bitflip(model, tiny_images(), budget=5).table.layer) == {"3"}


def test_a_shared_tensor_is_stored_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    stored = store(model)
    assert list(stored.layers) == ["0"] and stored.size == 72
    assert stored.model[2].weight is stored.model[0].weight


def test_flipping_works_in_any_memory_layout(network):
    rows, last = store(network), store(network)
    last.model.to(memory_format=torch.channels_last)
    for index in (0, 5, 30):
        rows.flip(Flip("layer1.0.conv1", index, 7))
        last.flip(Flip("layer1.0.conv1", index, 7))
    one, other = rows.weight("layer1.0.conv1"), last.weight("layer1.0.conv1")
    assert torch.equal(one, other)
    assert one.flatten()[5] != network.layer1[0].conv1.weight.flatten()[5]


# The search


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_allowed_flips_are_those_that_raise_the_linearized_loss(bits, scale):
    stored, images = store(tiny(), bits, scale), tiny_images()
    labels = stored.model(images).argmax(1)
    gains = linear_gains(stored, images, labels)
    gradients = autograd_gradients(stored, images, labels)
    for name, layer in stored.layers.items():
        ranked = rank(name, layer, gradients[name], layer.size)
        own = {flip: gain for flip, gain in gains.items() if flip.layer == name}
        clear = {flip: gain for flip, gain in own.items() if abs(gain) > 1e-8}
        assert {f for f in ranked if f in clear} == {f for f, gain in clear.items() if gain > 0}
        assert 0 < len(ranked) < layer.size
        found = [own[flip] for flip in ranked]
        assert all(a > b - 1e-8 for a, b in pairwise(found))


@pytest.mark.parametrize("bits", WIDTHS)
def test_each_step_takes_the_best_of_all_candidates(bits):
    """Every layer's first candidate, tried on a network made afresh, for six steps."""
    images = tiny_images()
    trace = bitflip(tiny(), images, bits=bits, budget=6)
    stored = store(tiny(), bits)
    labels = stored.model(images).argmax(1)
    singles = trace.table[trace.table.n_b == 1]
    assert len(singles) >= 3
    for row in trace.table.itertuples():
        state = replay(stored, trace.table[trace.table.flip < row.flip])
        if row.n_b == 1:
            gains = linear_gains(state, images, labels)
            losses = {}
            for name in state.layers:
                flip = max((f for f in gains if f.layer == name), key=gains.__getitem__)
                assert gains[flip] > 0
                q = turned(state.integer(name, flip.index), flip.bit, bits)
                losses[flip] = loss_with(state, images, labels, {flip: q})
            best = max(losses, key=losses.__getitem__)
            assert Flip(row.layer, row.index, row.bit) == best
            assert isclose(row.loss_after, losses[best], rel_tol=1e-9)
            assert isclose(row.loss_before, loss_with(state, images, labels, {}), rel_tol=1e-9)


def some_labels(seed):
    return torch.randint(3, (12,), generator=torch.Generator().manual_seed(seed))


# A network for which, at one bit, single flips soon raise nothing, but several do.
GROWING = tiny(22), tiny_images(), some_labels(22)


def test_n_b_grows_when_no_single_candidate_raises_the_loss():
    model, images, labels = GROWING
    table = bitflip(model, images, labels, bits=1, budget=40).table
    step = table[table.step == table.step[table.n_b > 1].iloc[0]]
    n_b = int(step.n_b.iloc[0])
    assert len(step) == n_b > 1
    state = replay(store(model, 1), table[table.step < step.step.iloc[0]])
    now = loss_with(state, images, labels, {})
    gradients = autograd_gradients(state, images, labels)
    for count in range(1, n_b + 1):
        tried = {}
        for name, layer in state.layers.items():
            flips = rank(name, layer, gradients[name], count)
            changed = {f: -state.integer(name, f.index) for f in flips}
            tried[name] = loss_with(state, images, labels, changed)
        assert (max(tried.values()) > now) == (count == n_b)
    assert step.layer.iloc[0] == max(tried, key=tried.__getitem__)
    assert step.loss_after.nunique() == step.loss_before.nunique() == 1


def test_more_candidates_of_each_layer_are_scored_by_forward_passes():
    """At one bit, of each layer's three best flips to first order the one that is best in fact."""
    model, images, labels = GROWING
    for each in (1, 3):
        row = bitflip(model, images, labels, bits=1, budget=1, each=each).table.iloc[0]
        state, losses = store(model, 1), {}
        gradients = autograd_gradients(state, images, labels)
        for name, layer in state.layers.items():
            for flip in rank(name, layer, gradients[name], each):
                q = -state.integer(name, flip.index)
                losses[flip] = loss_with(state, images, labels, {flip: q})
        best = max(losses, key=losses.__getitem__)
        assert Flip(row.layer, row["index"], row.bit) == best
        assert isclose(row.loss_after, losses[best], rel_tol=1e-9)
        assert row.forwards == 3 + len(losses)


def test_it_ends_where_nothing_tried_raises_the_loss():
    trace = bitflip(*GROWING, bits=1, budget=500, most_candidates=2)
    assert trace.reason == "stalled" and trace.table.n_b.max() <= 2
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    flat[1].weight.data.zero_()
    assert bitflip(flat, tiny_images().float()).reason == "flat"


@pytest.mark.parametrize(("bits", "seed"), [(8, 0), (4, 0), (1, 2)])
def test_a_trace_replays_to_the_final_network(bits, seed):
    """At one bit, some flip back."""
    images, model, labels = tiny_images(), tiny(seed), some_labels(2) if seed else None
    trace = bitflip(model, images, labels, bits=bits, budget=60 if seed else 15)
    clean = store(model, bits)
    values, seen = integers_of(clean), set()
    for row in trace.table.itertuples():
        flat = values[row.layer].reshape(-1)
        assert flat[row.index] == row.before
        assert turned(row.before, row.bit, bits) == row.after
        flat[row.index] = row.after
        seen ^= {(row.layer, row.index, row.bit)}
        assert row.hamming == len(seen)
    for name, layer in trace.stored.layers.items():
        assert (layer.integers().numpy() == values[name]).all()
        expected = torch.from_numpy(values[name]).double() * layer.scale
        assert torch.equal(trace.stored.model.get_submodule(name).weight, expected)
    assert hamming(trace.stored, clean) == trace.table.hamming.iloc[-1]
    assert hamming(trace.stored, replay(clean, trace.table)) == 0
    assert (trace.table.loss_after > trace.table.loss_before).all()
    assert (trace.table.hamming.iloc[-1] < len(trace.table)) == bool(seed)


def test_a_stored_model_is_attacked_as_it_is_and_stays():
    """Mixed widths: 8 bits in the first layer, the sign alone in the classifier."""
    eight, one = store(tiny(), 8), store(tiny(), 1)
    mixed = StoredModel(eight.model, {"0": eight.layers["0"], "3": one.layers["3"]}).copy()
    assert mixed.size == 18 * 8 + 24
    before = mixed.copy()
    trace = bitflip(mixed, tiny_images(), budget=8)
    assert hamming(mixed, before) == 0 and hamming(trace.stored, before) > 0
    assert torch.equal(mixed.model[3].weight, one.model[3].weight)
    classifier = trace.table[trace.table.layer == "3"]
    assert len(classifier) and (classifier.bit == 0).all()
    assert (classifier.before == -classifier.after).all()


# What else it promises


def test_passes_are_counted_and_parts_of_the_batch_add_up():
    calls = []
    model = tiny()
    model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    table = bitflip(model, tiny_images(), budget=4).table
    assert (table.n_b == 1).all()
    assert table.forwards.tolist() == [2 + 3 * step for step in (1, 2, 3, 4)]
    assert table.gradients.tolist() == [1, 2, 3, 4]
    of_batch = [count for count in calls if count == 12]  # others are of the border check
    assert of_batch == [12] * table.forwards.iloc[-1]
    whole = bitflip(tiny(), tiny_images(), budget=5).table
    parts = bitflip(tiny(), tiny_images(), budget=5, batch=5).table
    exact = ["layer", "index", "bit", "before", "after", "hamming"]
    assert whole[exact].equals(parts[exact])
    assert np.allclose(whole.loss_after, parts.loss_after)


def test_accuracy_level_and_progress():
    images, model, done = tiny_images(), tiny(), list[int]()
    labels = store(model).model(images).argmax(1)

    def accuracy(attacked):
        return float((attacked(images).argmax(1) == labels).double().mean())

    options = {"budget": 50, "evaluate": accuracy, "progress": done.append}
    trace = bitflip(model, images, stop=0.4, **options)
    assert trace.start_accuracy == 1.0 and trace.reason == "level"
    assert trace.table.accuracy.iloc[-1] <= 0.4 < trace.table.accuracy.iloc[-2]
    assert accuracy(trace.stored.model) == trace.table.accuracy.iloc[-1]
    assert len(trace.table) == sum(done) and trace.bits_to(1.0) == 0
    assert trace.bits_to(-1.0) is None and trace.bits_to(0.4) == trace.table.hamming.iloc[-1]
    assert bitflip(model, images, stop=1.0, evaluate=accuracy).table.empty
    second = bitflip(model, images, budget=3, evaluate=accuracy, every=2).table
    assert second.accuracy.notna().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="no accuracy"):
        bitflip(model, images, budget=1).bits_to(0.5)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_targeted_attacks_push_into_the_class(network, digits, loss):
    images = digits[0][:32]
    share = [int((store(network).model(images).argmax(1) == c).sum()) for c in range(10)]
    target = share.index(min(share))
    trace = bitflip(network, images, target=target, loss=loss, budget=8)
    assert (trace.table.loss_after < trace.table.loss_before).all()
    now = int((trace.stored.model(images).argmax(1) == target).sum())
    assert now > min(share) + 16


def decided_and_sure():
    """Two classes, two images of the first: one is wrong already, the other right and sure.

    The first image is the sum of 12 columns, the second that of the other 4.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    model[1].weight.data = torch.zeros(2, 16)
    model[1].weight.data[0] = torch.tensor([-0.1] * 12 + [1.0] * 4)
    images = torch.zeros(2, 1, 4, 4)
    images.view(2, 16)[0, :12] = images.view(2, 16)[1, 12:] = 1.0
    return model, images, torch.tensor([0, 0])


def test_margin_goes_on_where_cross_entropy_stays_with_what_is_wrong():
    model, images, labels = decided_and_sure()
    assert model(images).argmax(1).tolist() == [1, 0]
    ce = bitflip(model, images, labels, budget=6)
    assert (ce.table["index"] % 16 < 12).all()  # all in the columns of the image already wrong
    assert ce.stored.model(images).argmax(1).tolist() == [1, 0]
    margin = bitflip(model, images, labels, budget=6, loss="margin")
    assert margin.stored.model(images).argmax(1).tolist() == [1, 1]
    logits = store(model).model(images)
    won = logits[:, 1] - logits[:, 0]
    first = bitflip(model, images, labels, budget=1, loss="margin").table.loss_before.iloc[0]
    assert won[0] > 0 > won[1]
    assert isclose(first, float(LEAK * won[0] + won[1]) / 2, rel_tol=1e-6)
    pushed = bitflip(model, images, target=1, budget=1, loss="margin").table.loss_before.iloc[0]
    assert isclose(pushed, -first, rel_tol=1e-6)  # of two classes, the other's margin


# Random flips


def test_random_flips_take_every_bit_once():
    model = tiny()
    trace = random_flips(model, bits=3, budget=1000)
    assert trace.reason == "exhausted" and len(trace.table) == 42 * 3
    places = set(zip(trace.table.layer, trace.table["index"], trace.table.bit, strict=True))
    expected = {("0", i, b) for i in range(18) for b in range(3)}
    assert places == expected | {("3", i, b) for i in range(24) for b in range(3)}
    assert trace.table.hamming.tolist() == list(range(1, 127))
    assert hamming(trace.stored, store(model, 3)) == 126
    assert trace.table.loss_after.isna().all()
    assert list(trace.table.columns) == list(TYPES)
    few = random_flips(model, bits=3, budget=7).table
    pd.testing.assert_frame_equal(few, trace.table.head(7), check_exact=True)


def test_weights_that_meet_only_padding_are_no_stored_bits():
    """On a map of 1x1 the middle of a 3x3 filter alone meets a value."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 4)).eval()
    assert store(model, 2).size == 2 * (54 + 12)
    stored = store(model, 2, image_shape=(2, 1, 1))
    assert stored.size == 2 * (6 + 12) == stored.copy().size
    flips = list(random_bits(stored, torch.Generator().manual_seed(0)))
    assert len(flips) == len(set(flips)) == stored.size
    assert {flip.index % 9 for flip in flips if flip.layer == "0"} == {4}


def test_floats_of_batch_norm_and_of_scales_are_bits_too(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    plain = store(net.eval(), 8, "channel")
    stored = store(net, 8, "channel", floats=True)
    assert stored.size == plain.size + 32 * (2 + 2 + 2 + 10)  # batch-norm's, and the scales
    before = {name: value.clone() for name, value in stored.model.state_dict().items()}
    for flip, name, factor in (
        (Flip("1.weight", 1, 31), "1.weight", -1),  # the sign
        (Flip("0.scale", 1, 23), "0.weight", None),  # the last bit of the exponent
    ):
        stored.flip(flip)
        ratio = stored.model.get_parameter(name)[1] / before[name][1]
        assert torch.equal(ratio, torch.full_like(ratio, factor or float(ratio.flatten()[0])))
        assert factor or float(ratio.flatten()[0]) in (0.5, 2)
        assert torch.equal(stored.model.get_parameter(name)[0], before[name][0])
        stored.flip(flip)  # undone
        assert all(torch.equal(stored.model.state_dict()[key], before[key]) for key in before)
    # d sum(g W) / ds = sum(g q), channel by channel
    g, q = torch.randn(2, 1, 3, 3), stored.layers["0"].integers()
    assert torch.allclose(stored.gradient("0.scale", g).flatten(), (g * q).sum((1, 2, 3)))
    change = stored.layers["1.bias"].changes()  # of numbers that are 0
    assert change[31].tolist() == [0, 0] and change[23:30].abs().max() <= 1e6
    scaled = {name: layer for name, layer in stored.layers.items() if name[0] != "1"}
    traces = [
        bitflip(s, digits[0][:32], budget=3)
        for s in (plain, StoredModel(stored.model, scaled), stored)
    ]
    gained = [trace.table.loss_after.iloc[-1] for trace in traces]
    assert min(gained[1:]) > 2 * gained[0] and ".scale" in "".join(traces[1].table.layer)


def gated(weight):
    """Images of one pixel: those above 0.5 pass a batch-norm and a ReLU, the others are cut off."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2)
    )
    for parameter, value in zip(net.parameters(), (1.0, -0.5, weight, 0.0), strict=False):
        nn.init.constant_(parameter, value)
    net[4].weight.data[:] = torch.tensor([[-1.0], [64.0]])
    net[4].bias.data[:] = torch.tensor([0.5, 0.0])
    return store(net.eval(), 8, floats=True), torch.linspace(0, 1, 10).view(10, 1, 1, 1)


def test_the_search_makes_the_flip_after_which_no_loss_is_finite():
    """Bit 30 of a batch-norm's weight of one makes it infinite. It was never tried, so that a
    network that one flip destroys was said to need many."""
    stored, images = gated(1.0)
    images = images[5:]
    labels = stored.model(images).argmax(1)

    def answered(model):
        logits = model(images)
        return float((logits.isfinite().all(1) & (logits.argmax(1) == labels)).float().mean())

    trace = bitflip(stored, images, budget=6, every=3, stop=0.3, evaluate=answered)
    assert trace.reason == "level" and trace.bits_to(0.3) == 1  # measured at once
    assert trace.table.bit.item() == 30 and trace.table.loss_after.item() == LOST
    aim = bitflip(stored, images, budget=2, target=0)  # which a lost image does not reach
    assert aim.table.loss_after.max() < LOST / 2


def test_images_that_are_lost_leave_the_gradient_to_the_others():
    stored, images = gated(0.75)  # of which bit 30 makes 2.6e38
    labels = stored.model(images).argmax(1)
    stored.flip(Flip("1.weight", 0, 30))
    lost = ~stored.model(images).isfinite().all(1)
    assert lost.sum() == 5 and not lost[:5].any()
    objective = Objective(stored, [(images, labels)], "ce", 1)
    weight = stored.model[4].weight.detach().requires_grad_()
    features = torch.zeros(5, 1)  # cut off
    height = F.cross_entropy(
        features @ weight.T + stored.model[4].bias, labels[:5], reduction="sum"
    )
    assert objective.height() == pytest.approx((5 * LOST + float(height.detach())) / 10)
    (expected,) = torch.autograd.grad(height / 10, weight)
    assert torch.allclose(objective.gradient()["4"], expected)


def test_random_flips_are_uniform_over_bits():
    """Two draws of 1500 orders: chi-square over all 20 bits, and over layers in proportion."""
    mixed = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    stored = store(mixed, 4)
    draws = Counter[Flip]()
    for seed in range(1500):
        order = random_bits(stored, torch.Generator().manual_seed(seed))
        draws.update([next(order), next(order)])
    assert len(draws) == 20
    assert sum((n - 150) ** 2 / 150 for n in draws.values()) < 43.8  # 99.9 % of chi-square(19)
    first = sum(n for flip, n in draws.items() if flip.layer == "0")
    assert abs(first - 1800) < 4 * (3000 * 0.6 * 0.4) ** 0.5


# Refusals


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"bits": 0}, "bits"),
        ({"scale": "row"}, "scale"),
        ({"loss": "hinge"}, "loss"),
        ({"target": 3}, "classes"),
        ({"budget": -1}, "budget"),
        ({"every": 0}, "every"),
        ({"stop": 0.1}, "evaluate"),
        ({"most": 1}, "most"),
        ({"images": tiny_images()[:0]}, "no images"),
    ],
)
def test_options_that_make_no_sense_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        bitflip(tiny(), **({"images": tiny_images(), "budget": 1} | change))


def test_models_that_cannot_be_attacked_are_refused():
    images, broken, endless = tiny_images(), tiny(), tiny()
    broken[0].weight.data[0, 0, 0, 0] = torch.nan
    endless[3].bias.data[0] = torch.inf
    for model, word in (
        (broken, "NaN"),
        (endless, "infinite"),
        (nn.Sequential(tiny(), Noisy()), "draws at random"),
        (nn.Flatten(), "no convolution or linear"),
    ):
        with pytest.raises(ValueError, match=word):
            bitflip(model, images)
