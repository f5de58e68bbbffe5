"""What enters the library is made right, or refused in one line; what every attack promises."""

import copy
import random
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from masked import Around
from torch import Tensor, nn

from advprune import evaluate, load_model, prune
from advprune.attacks import attack, bitflip, pgd
from advprune.attacks.bit_search import random_flips
from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.core.errors import UserError
from advprune.evaluate.records import Work, all_logits
from advprune.models.border import admitted
from advprune.models.checkpoint import save_model
from advprune.models.copies import plain_copy
from advprune.models.stochastic import frozen_copy, is_randomized, stochastic_layers
from advprune.quantization.post_training import quantize


class Counting(nn.Module):
    """A linear model whose answer is another in every third pass."""

    def __init__(self, kind="number"):
        super().__init__()
        self.model, self.kind, self.calls, self.seen = flat(), kind, 0, list[int]()
        self.register_buffer("count", torch.zeros(()))
        self.cache = None

    def forward(self, x):
        self.cache = self.model(x)  # which is no state: it is not read again
        if self.kind == "number":
            self.calls += 1
        elif self.kind == "buffer":
            self.count += 1
        elif self.kind == "list":
            self.seen.append(0)
        elif self.kind == "names":
            passes = sum(name.startswith("seen_") for name in vars(self))
            setattr(self, f"seen_{passes}", 0)
        third = max(self.calls, int(self.count), len(self.seen)) % 3 == 2
        return self.cache.roll(1, 1) if third else self.cache


def flat():
    """A linear model of ten classes on digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


# Of a model, images, labels and a budget; other options by name.
IN_A_BALL = {
    "pgd": lambda m, x, y, eps=0.1, step=0.05, steps=3, **o: pgd(m, x, y, eps, step, steps, **o),
    "apgd": partial(attack, "apgd", eps=0.1, steps=3),
    "square": partial(attack, "square", eps=0.1, queries=5),
    "autoattack": partial(attack, "autoattack", eps=0.1),
}
ENTRIES = IN_A_BALL | {
    "minimum_norm": partial(attack, "minimum_norm", eps=0.1, steps=3),
    "score": lambda m, x, y, **o: evaluate.score(m, x, x, y, **o),
    "bitflip": lambda m, x, y, **o: bitflip(m, x, y, budget=2, **o).table,
}
QUICK = sorted({*ENTRIES} - {"autoattack"})


def changed(change):
    return lambda: Around(flat(), logits=change)


def seeing(change):
    """A model that sees other images."""
    return lambda: Around(flat(), images=change)


SHARES = "returns probabilities"
MODELS = {
    "dict": (changed(lambda z: {"logits": z}), "returns dict for 2 images, not logits"),
    "tuple": (changed(lambda z: (z, None)), "returns tuple for 2 images"),
    "nothing": (changed(lambda z: None), "returns NoneType for 2 images"),
    "squeezed": (changed(lambda z: z[0]), r"returns torch.float32 \[10\] for 2 images"),
    "squeezed alone": (changed(lambda z: z.squeeze()), r"\[10\] for 1 images"),
    "maps": (changed(lambda z: z[:, :, None, None]), r"\[2, 10, 1, 1\] for 2 images"),
    "no classes": (changed(lambda z: z[:, :0]), r"\[2, 0\] for 2 images"),
    "integers": (changed(lambda z: z.argmax(1, keepdim=True)), "returns torch.int64"),
    "double": (changed(lambda z: z.double()), "returns torch.float64 .* of torch.float32"),
    "complex": (changed(lambda z: z.to(torch.complex64)), "returns torch.complex64"),
    "sparse": (changed(lambda z: z.to_sparse()), "returns torch.sparse"),
    "one class": (changed(lambda z: z[:, :1]), "has one class"),
    "half": (lambda: copy.deepcopy(flat()).bfloat16(), "computes in torch.bfloat16"),
    "meta": (lambda: flat().to("meta"), "on the meta device"),
    "class": (lambda: nn.Linear, "type is no nn.Module"),
    "scripted": (lambda: torch.jit.script(flat()), "is a ScriptModule"),
    "probabilities": (changed(lambda z: z.softmax(1)), SHARES),
    "half probabilities": (changed(lambda z: z.bfloat16().softmax(1).float()), SHARES),
    "sigmoid": (changed(torch.sigmoid), SHARES),
    "half sigmoid": (changed(lambda z: z.bfloat16().sigmoid().float()), SHARES),
    "hard sigmoid": (changed(nn.functional.hardsigmoid), SHARES),
    "NaN": (changed(lambda z: z * float("nan")), "returns NaN"),
    "infinite": (changed(lambda z: z / 0), "infinite logits"),
    "batch": (changed(lambda z: z - z.mean(0)), "depend on the other images"),
    "first of a batch": (seeing(lambda x: (x + x[:1]) / 2), "depend on the other images"),
    "before it in a batch": (changed(lambda z: z.cumsum(0)), "depend on the other images"),
    "of six": (seeing(lambda x: x.view(6, 1, 8, 8)), r"fails on images \[2, 1, 8, 8\]: Runtime"),
    "arguments": (lambda: nn.Bilinear(64, 64, 10), "fails on .*: TypeError"),
    "exits": (seeing(lambda x: sys.exit(0)), "fails on .*: SystemExit"),
    "in place": (seeing(lambda x: x.sub_(0.5)), "changes its input in place"),
    "unseen in place": (seeing(nn.ReLU(inplace=True)), "changes its input in place"),
    "counts": (lambda: Counting(), "a pass changes calls, on"),
    "counts in a buffer": (lambda: Counting("buffer"), "a pass changes count, on"),
    "lists": (lambda: Counting("list"), "a pass changes seen, on"),
    "gains names": (lambda: Counting("names"), r"a pass changes seen_\d, "),
    "inference": (changed(torch.inference_mode()(lambda z: z * 1)), "leave torch.inference_mode"),
}


@pytest.mark.parametrize(
    ("attack", "kind"), [*(("pgd", kind) for kind in MODELS), *((one, "dict") for one in QUICK)]
)
def test_a_model_that_gives_no_logits_is_refused(attack, kind, digits):
    made, words = MODELS[kind]
    model, state = made(), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{attack}: .*{words}"):
        ENTRIES[attack](model, *digits)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch.ao's
@pytest.mark.parametrize(
    "made",
    [
        changed(lambda z: z.log_softmax(1)),
        changed(lambda z: 0.5 + z / 100),  # logits that lie in [0, 1]
        changed(lambda z: z.tanh().abs()),
        changed(torch.detach),
        lambda: nn.DataParallel(flat()),
        lambda: flat().requires_grad_(False),
        lambda: Counting("none"),
        lambda: torch.ao.quantization.quantize_dynamic(flat(), {nn.Linear}, dtype=torch.qint8),
    ],
    ids=range(8),
)
def test_logits_of_another_kind_are_taken(made, digits):
    model = made()
    images, labels = digits[0][:4], digits[1][:4]
    for entry in {*QUICK} - {"score", "bitflip"}:
        ENTRIES[entry](model, images, labels)
    found = evaluate.score(model, images, images, labels)
    assert found.clean_pred.tolist() == model(images).argmax(1).tolist()


WRONG = [
    (lambda x, y: (x.double(), y), "images are torch.float64"),
    (lambda x, y: ((255 * x).to(torch.uint8), y), r"images are torch.uint8 \[64, 1, 8, 8\]; give"),
    (lambda x, y: (255 * x, y), "outside"),
    (lambda x, y: (2 * x - 1, y), "outside"),
    (lambda x, y: (x / 255, y), "divided by 255 twice"),
    (lambda x, y: (x * float("nan"), y), "NaN"),
    (lambda x, y: (x.clone().requires_grad_(), y), "require a gradient"),
    (lambda x, y: (x.numpy(), y), "images are ndarray; give floats"),
    (lambda x, y: (x[:, 0], y), r"\[64, 8, 8\]; give floats .N, C, H, W"),
    (lambda x, y: (x[:, :, :0], y), r"\[64, 1, 0, 8\]; give"),
    (lambda x, y: (x.to_sparse(), y), "images are torch.sparse"),
    (lambda x, y: (x.to("meta"), y), "images are meta"),
    (lambda x, y: (x.repeat(1, 3, 1, 1), y), "fails on images"),
    (lambda x, y: (x, y.int()), "labels are torch.int32"),
    (lambda x, y: (x, torch.eye(10)[y]), r"labels are torch.float32 \[64, 10\]; give .* \[64\]"),
    (lambda x, y: (x, y[0]), r"labels are torch.int64 \[\];"),
    (lambda x, y: (x, y.tolist()), "labels are list"),
    (lambda x, y: (x, None), "labels are NoneType"),
    (lambda x, y: (x, y.to("meta")), "labels are meta"),
    (lambda x, y: (x, y * 0 - 100), "of at least 0"),
    (lambda x, y: (x, y + 10), "label 19 is none of 10 classes"),
    (lambda x, y: (x, y[1:]), r"labels are torch.int64 \[63\]; give torch.int64 \[64\]"),
]


@pytest.mark.parametrize(
    ("attack", "change", "words"),
    [*(("pgd", *one) for one in WRONG), *((attack, *WRONG[0]) for attack in ENTRIES)],
)
def test_images_and_labels_of_another_kind_are_refused(attack, change, words, digits):
    with pytest.raises(ValueError, match=words):
        ENTRIES[attack](flat(), *change(*digits))


@pytest.mark.parametrize("attack", QUICK)
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ],
)
def test_images_of_any_layout_give_the_same(attack, layout, digits):
    torch.manual_seed(0)
    model, (images, labels) = flat(), digits
    expected, found = (ENTRIES[attack](model, x, labels) for x in (images, layout(images)))
    if attack in ("score", "bitflip"):
        assert found.equals(expected)
    else:
        assert torch.allclose(found, expected, atol=1e-6)


NAN, INF = float("nan"), float("inf")
BUDGETS = (8, NAN, -0.1, INF, "8-255", None, True, 1j, [0.1])
OPTIONS = {
    "pgd": {
        **{"eps": BUDGETS, "steps": (-1, 2.5, "many", None, INF, True), "restarts": (0, 1.5)},
        **{"step": (-1, "half", None, NAN), "batch": (0, 2.5, "8", 2**70), "draws": (0,)},
        **{"start": (torch.rand(3, 1, 8, 8), np.zeros(3), "best"), "momentum": (2, "a")},
        **{"norm": ("linf", "L1"), "loss": ("hinge",), "keep": ("first",)},
        "precision": ("float16",),
    },
    "apgd": {"eps": BUDGETS, "norm": ("L1",), "loss": ("margin",), "steps": (0,), "batch": (0,)},
    "square": {
        **{"eps": BUDGETS, "norm": ("L1",), "queries": (0,), "p": (0.0,), "draws": (0,)},
        "batch": (0,),
    },
    "autoattack": {
        **{"eps": (-0.1, 1.5, NAN), "norm": ("L1",), "version": ("plus",), "batch": (0,)}
    },
    "minimum_norm": {"norm": ("L1",), "batch": (0,)},
    "score": {"batch": (0, "8"), "passes": (0, 2.5)},
}


@pytest.mark.parametrize(
    ("attack", "key", "value"),
    [
        (attack, key, value)
        for attack, options in OPTIONS.items()
        for key, values in options.items()
        for value in values
    ],
)
def test_options_that_make_no_sense_are_refused(attack, key, value, digits):
    with pytest.raises(ValueError, match=rf"^{attack}: {key}\b"):
        ENTRIES[attack](flat(), digits[0][:2], digits[1][:2], **{key: value})


def test_metrics_are_of_one_attack_and_whole_records(digits):
    records = evaluate.score(flat(), digits[0], *digits)
    for wrong, words in (
        (records.drop(columns="adv_pred"), "no column adv_pred"),
        (pd.concat([records, records]), "several attacks"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate.metrics(wrong)


def test_a_model_in_training_mode_is_scored_in_evaluation_mode(network, digits):
    images, labels = digits
    expected = evaluate.score(network, images, images, labels)
    training = copy.deepcopy(network).train()
    before = {name: tensor.clone() for name, tensor in training.state_dict().items()}
    for batch in (2, 64):
        found = evaluate.score(training, images, images, labels, batch=batch)
        assert (found.clean_pred == expected.clean_pred).all()
    pgd(training, images, labels, 0.1, 0.05, 1)
    assert training.training
    assert all(torch.equal(before[name], t) for name, t in training.state_dict().items())


def test_the_longer_checks_of_a_model_are_made_once(digits, monkeypatch):
    """Of a model in training mode, too, of which a copy is checked."""
    model, made = flat().train(), []
    monkeypatch.setattr("advprune.models.border.kept_by", lambda one: made.append(one) or {})
    copied = admitted("it", model, digits[0])
    assert copied is not model and len(made) == 2  # before its passes and after
    for one in (model, copied):
        admitted("it", one, digits[0])
    assert len(made) == 2


def test_training_data_of_another_kind_are_refused(network, digits):
    for data in ((1,), "x", {"images": 1}, [1, 2], (None, None)):
        words = r"clamp: (data is a tuple|training data: images are None)"
        with pytest.raises(UserError, match=words):
            prune("clamp", network, 3.0, data)
    images, labels = digits
    for wrong in ((255 * images).to(torch.uint8), 255 * images):
        with pytest.raises(UserError, match=r"clamp: training data: images"):
            prune("clamp", network, 3.0, (wrong, labels))
        with pytest.raises(ValueError, match="quantize: images"):
            quantize(network, wrong)


NOISE = {
    "torch": lambda x: x + 0.25 * torch.randn_like(x),
    "numpy": lambda x: x + 0.25 * float(np.random.rand()),
}


@pytest.mark.parametrize("source", NOISE)
def test_plain_randomness_is_found_and_averaged_over(source, digits):
    images, labels = digits
    model = Around(flat(), images=NOISE[source])
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    known, cost = admitted("it", model, images), Cost()
    assert is_randomized(known) and admitted("it", known, images) is known
    adv = pgd(model, images, labels, 0.1, 0.05, 2, draws=5, cost=cost)
    assert cost.gradients == 2 * 5 * len(images)  # each draw is a pass of its own
    assert torch.equal(adv, pgd(model, images, labels, 0.1, 0.05, 2, draws=5))
    drawn = all_logits(model, images, Work(draws=10))
    assert len(drawn) == 10 and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, all_logits(model, images, Work(draws=10)))
    one = frozen_copy(known)(images[:1].repeat(3, 1, 1, 1))
    assert torch.equal(one[0], one[1]) and torch.equal(one[1], one[2])
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()


LOST = {
    "hook": (
        lambda net: net[3].register_forward_hook(lambda m, x, out: 2 * out),
        "3 has hooks, which a stored",
    ),
    "own forward": (
        lambda net: setattr(net, "forward", lambda x, inner=net.forward: -inner(x)),
        "the model has hooks, which a stored",
    ),
    "hook on a weight": (
        lambda net: net[3].weight.register_hook(lambda gradient: 0 * gradient),
        r"3\.weight has hooks, which a copy",
    ),
    "hidden layers": (
        lambda net: setattr(net, "more", [nn.Linear(10, 10)]),
        "the layers in more are no part of it",
    ),
    "view": (
        lambda net: setattr(net[3], "weight", nn.Parameter(net[1].weight.detach()[:10])),
        r"1\.weight and 3\.weight are one tensor",
    ),
    "tied": (lambda net: setattr(net[1], "again", net[1].weight), "1.again are one tensor"),
    "lock": (
        lambda net: setattr(net, "lock", threading.Lock()),
        "the model cannot be copied: cannot pickle",
    ),
    "lazy": (lambda net: setattr(net, "more", nn.LazyLinear(3)), r"more\.weight has no shape"),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_a_stored_network_would_lose_is_refused(kind, digits):
    """Hooks, or a forward pass put in the place of another, are attacked all the same."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    change, words = LOST[kind]
    change(model)
    for refusing in (
        lambda: prune("E", model, 0.1),
        lambda: prune("clamp", model, 3.0, digits),
        lambda: quantize(model, digits[0]),
    ):
        with pytest.raises(UserError, match=words):
            refusing()
    if kind in ("hook", "own forward"):
        private = attack_copy(model, torch.device("cpu"))
        assert torch.equal(private(digits[0]), model(digits[0]))
        with pytest.raises(UserError, match="has hooks, which no file can hold"):
            save_model(model, Path("never.safetensors"))


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_hooks_on_all_modules_are_refused(kind, network, digits):
    registered = getattr(nn.modules.module, f"register_module_{kind}_hook")(lambda *_: None)
    try:
        for refusing in (
            lambda: pgd(network, *digits, 0.1, 0.02, 1),
            lambda: prune("E", network, 0.1),
        ):
            with pytest.raises(UserError, match="hooks are registered for all modules of torch"):
                refusing()
    finally:
        registered.remove()


@pytest.mark.parametrize("bits", [1, 9, 2.5, "8x", None])
def test_bits_that_make_no_sense_are_refused(bits, network, digits):
    with pytest.raises(UserError, match="quantize: bits: "):
        quantize(network, digits[0], bits)
    with pytest.raises(UserError, match="carries no ModelSpec"):
        quantize(flat(), digits[0])


def shared_relu(act):
    """Three activations: one that is shared, or made anew."""
    parts = [part for _ in range(3) for part in (nn.Conv2d(1, 1, 3, padding=1), act())]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10)).eval()


class Halved(nn.Module):
    """An activation of one's own."""

    def forward(self, x):
        return x.clamp_min(0) / 2


class Functional(nn.Module):
    """An activation that is a module, and one that is a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(nn.functional.relu(self.conv(self.act(self.conv(x)))).flatten(1))


def test_layers_stand_behind_every_activation_or_none(digits):
    shared = nn.ReLU()
    pruned = prune("SAP", shared_relu(lambda: shared), 1.0)
    assert len(stochastic_layers(pruned.model)) == pruned.notes["sites"] == 3
    acts = iter([nn.ReLU(), Halved(), nn.ReLU()])
    with pytest.raises(UserError, match="SAP: it would act at 2 of 3 activations: 3 is a Halved"):
        prune("SAP", shared_relu(lambda: next(acts)), 1.0)
    with pytest.raises(UserError, match=r"at 1 of 2 activations: relu is called"):
        prune("SAP", Functional().eval(), 1.0, digits)


REPARAMETRIZED = {
    "pruned": lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.5),
    "spectral norm": nn.utils.spectral_norm,
    "weight norm": nn.utils.weight_norm,
    "parametrized": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("kind", REPARAMETRIZED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reparametrized_weights_are_taken_as_they_are(kind, digits):
    model = flat()
    REPARAMETRIZED[kind](model[1])
    with torch.no_grad():
        expected = model.eval()(digits[0])
    for copied in (plain_copy(model), prune("E", model, 0.0).model):
        assert torch.allclose(copied(digits[0]), expected, atol=1e-6)
        assert set(dict(copied.named_parameters())) == {"1.weight", "1.bias"}
    pgd(model, *digits, 0.1, 0.02, 1)


def test_no_entry_point_moves_the_random_state(network, digits, tmp_path):
    save_model(network, tmp_path / "m.safetensors")
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    load_model(tmp_path / "m.safetensors")
    prune("RNA", network, 0.1)
    prune("SAP", network, {"fraction": 1.0, "where": "conv"})
    evaluate.score(quantize(network, digits[0]), digits[0], digits[0], digits[1])
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


# --- what every attack promises -------------------------------------------------------------------
def traces(model):
    """What a caller could notice of an attack."""
    named = dict(model.named_parameters())
    return [
        [m.training for m in model.modules()],
        copy.deepcopy(model.state_dict()),
        {k: None if p.grad is None else p.grad.clone() for k, p in named.items()},
        [p.requires_grad for p in named.values()],
        torch.random.get_rng_state(),
        [len(m._forward_pre_hooks) for m in model.modules()],
    ]


def same(one, other):
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("attack", [*ENTRIES, "random_flips"])
def test_no_trace_is_left(network, digits, attack):
    """Nor in the images; in evaluation as in training, a frozen batch-norm inside, without grad."""
    images, labels = (part[:4] for part in digits)
    network.train()
    network.bn1.eval()
    network.linear.weight.grad = torch.ones_like(network.linear.weight)
    before, kept = traces(network), images.clone()
    call = ENTRIES.get(attack, lambda m, *_, **__: random_flips(m, budget=2).table)
    found = call(network, images, labels)
    assert same(before, traces(network)) and torch.equal(kept, images)
    with torch.no_grad():
        again = call(network, images, labels)
    assert torch.equal(again, found) if isinstance(found, Tensor) else again.equals(found)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "drop", "best"])
def test_never_leaves_the_budget_or_the_pixel_range(network, digits, attack, norm):
    more = {"drop": {"drop": True, "restarts": 2}, "best": {"keep": "best"}}.get(attack, {})
    for eps in (0.0, 0.15 if norm == "Linf" else 0.8):
        how = {"eps": eps, "norm": norm} | more
        adv = IN_A_BALL.get(attack, IN_A_BALL["pgd"])(network, *digits, **how)
        change = (adv - digits[0]).flatten(1)
        size = change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)
        assert size.max() <= eps + 1e-6 and adv.min() >= 0 and adv.max() <= 1
        assert adv.shape == digits[0].shape and (eps == 0) == torch.equal(adv, digits[0])


@pytest.mark.parametrize("attack", [*IN_A_BALL, "minimum_norm"])
def test_no_images_give_none(network, digits, attack):
    none = digits[0][:0], digits[1][:0]
    assert ENTRIES[attack](network, *none).shape == none[0].shape
