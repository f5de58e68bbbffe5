"""Training: it learns, resumes exactly, says when it fails; attackers' own networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from advprune.attacks.pgd import pgd
from advprune.core.errors import UserError
from advprune.core.files import sha256_of
from advprune.core.profile import Profile
from advprune.core.train_settings import (
    BinarySettings,
    DataSettings,
    FineTuneSettings,
    GrowthSettings,
    ModelSettings,
    RecipeSettings,
    SurrogateSettings,
    TrainSettings,
    WeightsSettings,
)
from advprune.data import Split, prepare, to_float
from advprune.models.spec import ModelSpec, spec_of
from advprune.pruning import Data, prune
from advprune.quantization.post_training import quantize
from advprune.training.adversarial import Inner, Method, pgd_images
from advprune.training.binary import binary_spec, train_binary
from advprune.training.growth import grow
from advprune.training.inputs import Inputs
from advprune.training.networks import answers, load_or_train, train_surrogate
from advprune.training.standard import Trainer, accuracy, augment
from conftest import grey_images, make_network, same_weights, stored

EPS = 48 / 255
SETTINGS = TrainSettings(epochs=4, batch=16, lr=0.05, label_smoothing=0.1, crop=1, eps=EPS)
ATTACKING = ["pgd", "trades", "mixed"]


def pixels_of(pair):
    return (pair[0] * 255).round().to(torch.uint8), pair[1]


def trainer(pair, state, recipe=None, **changes):
    """A trainer on the digits."""
    data, settings = pixels_of(pair), SETTINGS.model_copy(update=changes)
    chosen = RecipeSettings(**recipe or {})
    return Trainer(make_network(pair[0]), data, data, settings, chosen, 0, state)


@pytest.fixture(scope="module")
def few():
    """600 digits to train on, and others to validate and test with."""
    settings = {"val_fraction": 0.15, "test_fraction": 0.25, "train_limit": 600}
    return prepare(DataSettings(source="digits", **settings))


def test_standard_training_is_the_plain_loop(digits, tmp_path):
    run = trainer(digits, tmp_path / "a.pt", epochs=2)
    model, (images, labels) = make_network(digits[0]), run.train
    model.to(memory_format=torch.channels_last)  # as sums are taken in another order
    how = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    optimizer = torch.optim.SGD(model.parameters(), 0.05, **how)
    schedule = OneCycleLR(optimizer, 0.05, total_steps=8, cycle_momentum=False)
    model.train()
    for epoch in range(2):
        generator = torch.Generator().manual_seed(epoch)
        for rows in torch.randperm(64, generator=generator).split(16):
            x = augment(images[rows], False, 1, generator) / 255
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels[rows], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    history = run.run()
    assert same_weights(model, run.model) and not run.model.training
    assert list(history[0]) == ["epoch", "train_loss", "train_accuracy", "val_accuracy"]
    assert history[-1]["val_accuracy"] == round(accuracy(run.model, images, labels), 4)
    assert all(parameter.is_contiguous() for parameter in run.model.parameters())
    run.state_path = None  # a second run trains on, and is no copy of the first
    again = run.run()
    assert len(again) == 2 and again != history


def test_a_loss_that_is_no_number_is_an_error(digits):
    run = trainer(digits, None, recipe={"method": "pgd"})
    run.model.linear.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"not a number; lower train\.lr"):
        run.run()


def test_a_last_batch_of_one_image_is_left_out(digits):
    for images, batches in ((34, 3), (5, 1), (33, 2)):
        run = trainer((digits[0][:images], digits[1][:images]), None, epochs=1)
        assert run.batches == batches
    run.run()


def test_flip_and_crop_by_hand():
    images = torch.arange(40 * 6).view(40, 1, 2, 3)
    flipped = augment(images, True, 0, torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 8 < int(same.sum()) < 32
    images = torch.zeros(200, 1, 5, 5)
    images[:, 0, 2, 2] = 1.0
    shifted = augment(images, False, 2, torch.Generator().manual_seed(0))
    assert (shifted.flatten(1).sum(1) == 1).all()
    places = {tuple(p) for p in shifted[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(r, c) for r in range(5) for c in range(5)}
    images = torch.ones(200, 1, 5, 5)
    assert augment(images, False, 2, torch.Generator().manual_seed(0)).mean() < 0.9


@pytest.mark.parametrize("method", ATTACKING)
def test_crafted_images_are_harder(method, digits, network):
    x, y = digits
    network.train()
    before, recipe = copy.deepcopy(network), RecipeSettings(method=method, share=1.0, budget=0.5)
    crafted = Method(recipe, SETTINGS).craft(network, x, y, torch.Generator().manual_seed(0))
    assert (crafted - x).abs().max() <= EPS / 2 + 1e-6
    assert (crafted - x).abs().max() > EPS / 2 - 1e-3
    assert crafted.min() >= 0 and crafted.max() <= 1 and not crafted.requires_grad
    assert network.training and same_weights(before, network)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    network.eval()
    assert F.cross_entropy(network(crafted), y) > F.cross_entropy(network(x), y)


def test_pgd_mixed_and_trades_find_the_known_worst_case_of_a_linear_model(linear):
    x, y = grey_images(8)
    found = pgd_images(linear, x, y, Inner(0.1, 0.03, 7), torch.Generator().manual_seed(0))
    assert torch.allclose(found, x + 0.1 * linear.worst(y).sign(), atol=1e-6)
    (x, y), generator = grey_images(10), torch.Generator()
    recipe = RecipeSettings(method="mixed", share=0.3, budget=0.5)
    method = Method(recipe, TrainSettings(batch=10, eps=0.2))
    found = method.craft(linear, x, y, generator)
    assert torch.allclose(found[:3], (x + 0.1 * linear.worst(y).sign())[:3], atol=1e-6)
    assert torch.equal(found[3:], x[3:])
    none = Method(RecipeSettings(method="mixed", share=0.0), TrainSettings())
    assert none.craft(linear, x, y, generator) is x
    x, y = grey_images(8)
    recipe = RecipeSettings(method="trades", steps=9)
    method = Method(recipe, TrainSettings(eps=0.1))
    found = method.craft(linear, x, y, torch.Generator().manual_seed(0))
    along = (found - x) * linear.worst(0 * y).sign()  # either way raises the divergence
    sides = along.flatten(1).mean(1).sign().view(-1, 1, 1, 1)
    assert torch.allclose(along, 0.1 * sides.expand_as(along), atol=1e-6)


def test_trades_loss_by_its_formula(digits, network):
    x, y = digits
    other = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    recipe = RecipeSettings(method="trades", beta=3.0)
    loss, logits = Method(recipe, SETTINGS).loss(network, x, other, y)
    natural, attacked = network(x), network(other)
    p = natural.softmax(1)
    divergence = (p * (p.log() - attacked.softmax(1).log())).sum(1).mean()
    expected = F.cross_entropy(natural, y) + 3 * divergence  # smoothing is of standard training
    assert torch.allclose(loss, expected, rtol=1e-5) and torch.equal(logits, natural)
    assert divergence > 1e-3


def test_the_epoch_of_highest_robust_accuracy_is_kept(digits, tmp_path, monkeypatch):
    seen = []
    given = iter([0.9, 0.2, 0.5, 0.5, 0.5, 0.5, 0.9, 0.1, 0.2, 0.4])  # clean, robust, clean, ...

    def measured(model, *_):
        seen.append(copy.deepcopy(model))
        return next(given)

    monkeypatch.setattr("advprune.training.standard.accuracy", measured)
    recipe = {"method": "pgd", "steps": 1, "epochs": 5}  # the profile's epochs are 4
    run = trainer(digits, tmp_path / "a.pt", recipe=recipe)
    history = run.run()
    assert [row["val_robust_accuracy"] for row in history] == [0.2, 0.5, 0.5, 0.1, 0.4]
    assert same_weights(run.model, seen[5]) and not same_weights(seen[5], seen[9])


def test_the_usual_inner_steps_cross_the_ball():
    """PGD-3 with steps of eps/4 from the far side would not reach its middle."""
    lengths = [RecipeSettings(method="pgd", steps=n).stride for n in (1, 3, 5, 7, 10)]
    assert lengths == pytest.approx([1.8, 0.6, 0.36, 1.8 / 7, 0.25])
    assert RecipeSettings(method="pgd", steps=3, step="eps/2").stride == 0.5
    with pytest.raises(ValueError, match=r"3 steps of 0.25 eps cannot cross the ball"):
        FineTuneSettings(method="pgd", steps=3, step=0.25)
    inner = Method(RecipeSettings(method="pgd", steps=3, budget=0.5), SETTINGS).inner
    assert inner == pytest.approx((EPS / 2, 0.3 * EPS, 3))


def test_adversarial_training_makes_robust(few):
    """Networks of width 4 after 10 epochs on 600 digits; histories say how robust they are."""
    train = SETTINGS.model_copy(update={"epochs": 10, "lr": 0.1, "batch": 64})
    settings = Profile.model_construct(model=ModelSettings(width=4), train=train)
    images, labels, robust = few["val"].images / 255, few["val"].labels, {}
    for method in ("standard", "pgd"):
        recipe = RecipeSettings(method=method, steps=2, budget=0.5)
        model, history = load_or_train(settings, "any", recipe, inputs(few))
        attacked = pgd(model, images, labels, EPS / 2, 6 / 255, 10, drop=True)
        robust[method] = accuracy(model, attacked, labels)
    assert robust["pgd"] > robust["standard"] + 0.15, robust
    best = max(row["val_robust_accuracy"] for row in history)
    assert len(history) == 10 and abs(best - robust["pgd"]) < 0.03


def test_weights_given_for_a_recipe_are_loaded(few, tmp_path):
    val, short = few["val"], SETTINGS.model_copy(update={"epochs": 1, "batch": 256})
    first = make_network(val.images / 255)
    torch.save(first.state_dict(), tmp_path / "w.pt")
    given = WeightsSettings(path=str(tmp_path / "w.pt"), sha256=sha256_of(tmp_path / "w.pt"))
    model = ModelSettings(width=4, weights={"given": given})
    settings = Profile.model_construct(model=model, train=short)
    found, history = load_or_train(settings, "given", RecipeSettings(), inputs(few))
    other, trained = load_or_train(settings, "other", RecipeSettings(), inputs(few))
    expected = {"epoch": 0, "val_accuracy": round(accuracy(found, val.images, val.labels), 4)}
    assert history == [expected] and "train_loss" in trained[0]
    assert torch.equal(found.linear.weight, first.linear.weight)
    assert not torch.equal(other.linear.weight, first.linear.weight)


# --- networks of an attacker's own ----------------------------------------------------------------
MOVING = {"flip": True, "crop": 1, "label_smoothing": 0.1}
STILL = {"flip": False, "crop": 0, "label_smoothing": 0.0}
ATTACKER = Profile.model_construct(
    model=ModelSettings(width=4, strides=(2, 2, 1, 1)),
    train=TrainSettings(epochs=12, batch=32, lr=0.1),
)


def inputs(few, state=None, seed=0):
    return Inputs(few["train"], few["val"], seed, torch.device("cpu"), state)


def copied(few, state, target=None, settings=ATTACKER, run_seed=0, **change):
    """A surrogate or, of a target, a substitute."""
    known = inputs(few, state / "a.pt", run_seed)
    return train_surrogate(settings, SurrogateSettings(**change), known, target)


@pytest.fixture(scope="module")
def victim(few, tmp_path_factory):
    """A network that has learned to call every digit by the next one's name."""
    train = few["train"]
    turned = Split(train.images, (train.labels + 1) % 10, train.classes, train.source)
    return copied(few | {"train": turned}, tmp_path_factory.mktemp("victim"), run_seed=5)[0]


@torch.no_grad()
def agreement(one, other, images):
    x = to_float(images)
    return float((one(x).argmax(1) == other(x).argmax(1)).float().mean())


def test_a_substitute_learns_what_its_target_says_and_sees_no_label(few, victim, tmp_path):
    victim.zero_grad()
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    train = few["train"]
    blind = Split(train.images, torch.zeros_like(train.labels), train.classes, train.source)
    found, _ = copied(few | {"train": blind}, tmp_path, victim)
    assert all(torch.equal(tensor, before[name]) for name, tensor in victim.state_dict().items())
    assert not victim.training and all(p.grad is None for p in victim.parameters())
    images, labels = few["test"].images, few["test"].labels
    assert accuracy(victim, images, (labels + 1) % 10) > 0.8
    assert agreement(found, victim, images) > 0.8 and accuracy(found, images, labels) < 0.1


def test_answers_are_the_targets_probabilities_of_the_images_as_they_are(few, victim):
    images = few["train"].images[:50]
    for target in (victim, quantize(victim, to_float(images))):
        found = answers(target, images, 16, 0)
        with torch.no_grad():
            one_by_one = torch.cat([target(x[None] / 255).softmax(1) for x in images])
        assert torch.allclose(found, one_by_one, atol=1e-5) and found.shape == (50, 10)
    random, before = prune("SAP", victim, 0.5).model, torch.random.get_rng_state()
    found, again, other = (answers(random, images, 8, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found, again) and not torch.equal(found, other)


@pytest.fixture
def untrained(monkeypatch):
    """Training does nothing; who was asked to train."""
    seen = []
    monkeypatch.setattr(Trainer, "run", lambda self: seen.append(self) or [])
    return seen


def test_the_images_of_a_substitute_are_neither_shifted_nor_mirrored(
    few, victim, untrained, tmp_path
):
    """What the target said of an image would not hold for a shifted one."""
    train = ATTACKER.train.model_copy(update=MOVING)
    for target in (None, victim):
        copied(few, tmp_path, target, ATTACKER.model_copy(update={"train": train}))
    plain, copying = (one.settings.model_dump(include=set(MOVING)) for one in untrained)
    assert (plain, copying) == (MOVING, STILL)
    assert untrained[0].train[1] is few["train"].labels and untrained[0].epochs == 12
    assert torch.equal(untrained[1].train[1], answers(victim, few["train"].images, 32, 0))


@pytest.mark.parametrize("change", [{}, {"architecture": "resnet20", "width": 2}, {"width": 6}])
def test_another_architecture_and_width(few, change, untrained, tmp_path, capsys):
    spec = spec_of(copied(few, tmp_path, **change)[0])
    wanted = {"architecture": "resnet18", "width": 4} | change
    assert {"architecture": spec.architecture, "width": spec.width} == wanted
    # Strides are one for each stage: another architecture has its own.
    assert spec.strides == (() if "architecture" in change else (2, 2, 1, 1))
    pixels = to_float(few["train"].images)  # its own normalization is of what it trains on
    assert (spec.channels, spec.classes) == (1, 10) and not capsys.readouterr().err
    assert spec.mean == (round(float(pixels.mean()), 4),)


def test_weights_that_meet_only_padding_are_warned_of(few, untrained, tmp_path, capsys):
    copied(few, tmp_path, settings=ATTACKER.model_copy(update={"model": ModelSettings(width=4)}))
    assert "61% of the weights of resnet18 of width 4 meet only padding" in capsys.readouterr().err


def test_the_seed_is_added_to_the_runs_and_decides_all(few, untrained, tmp_path):
    one, other, third = (copied(few, tmp_path, run_seed=10, seed=n)[0] for n in (0, 1, 2))
    assert [trainer.seed for trainer in untrained] == [10, 11, 12]
    assert not same_weights(one, other) and not same_weights(other, third)
    assert same_weights(other, copied(few, tmp_path, run_seed=11, seed=0)[0])


# --- killed and run again -------------------------------------------------------------------------
TWO = {"method": "pgd", "epochs": 2, "steps": 1, "lr": 0.5}
RESNET20 = ModelSpec(
    architecture="resnet20", width=4, channels=1, classes=10, mean=(0.3,), std=(0.4,)
)


def hydra(digits, few, state):
    """Scores, then weights: two epochs each."""
    setting = {"sparsity": 0.8, "scores": TWO, "finetune": TWO}
    train = TrainSettings(batch=32, eps=16 / 255)
    made = prune("HYDRA", make_network(digits[0], width=2), setting, Data(*digits, train, state))
    return made.model, made.notes


def ticket(digits, few, state):
    """A search that keeps its state at steps 0, 2 and 4, then two epochs."""
    search = {"batch": 4, "attack_steps": 1, "steps": 4, "refresh": 2}
    setting = {"sparsity": 0.9, "search": search, "train": TWO}
    train = TrainSettings(batch=32, eps=16 / 255)
    made = prune("AWT", make_network(digits[0], width=2), setting, Data(*digits, train, state))
    return made.model, made.notes


def substitute(digits, few, state):
    """Of a network that draws its own answers."""
    target = prune("SAP", make_network(digits[0]), 0.5).model
    return train_surrogate(ATTACKER, SurrogateSettings(epochs=2), inputs(few, state), target)


def with_dropout(digits, few, state):
    """As in networks of other libraries, which draw from the global random state."""
    pair, settings = pixels_of(digits), SETTINGS.model_copy(update={"epochs": 2})
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / 8
    return model, Trainer(model, pair, pair, settings, RecipeSettings(), 0, state).run()


def robust(digits, few, state):
    run = trainer(digits, state, {"method": "pgd", "steps": 2, "probe_steps": 2, "epochs": 2})
    return run.model, run.run()


def binary(digits, few, state):
    settings = BinarySettings(epochs=2, lr=0.2, t=1.0, method="pgd", steps=2)
    how = TrainSettings(batch=128)
    return train_binary(binary_spec(RESNET20), settings, how, inputs(few, state))


def growth(digits, few, state):
    settings = GrowthSettings(factor=2, epochs=2, frozen=0, lr=0.2, gate_lr=1.0, t=1.0)
    return nn.Identity(), grow(RESNET20, settings, TrainSettings(batch=128), inputs(few, state))


@pytest.mark.parametrize(
    ("make", "killed", "whole"),
    [
        *((make, 1, 2) for make in (robust, with_dropout, substitute, binary, growth)),
        *((hydra, killed, 4) for killed in (1, 3)),
        *((ticket, killed, 5) for killed in (2, 4)),
    ],
)
def test_what_is_killed_goes_on_where_it_was(make, killed, whole, digits, few, tmp_path):
    """Whatever the global random state was; no epoch is run a second time."""
    torch.manual_seed(1)
    unbroken, facts = make(digits, few, None)
    place = tmp_path / "training.pt"
    with stored(kill_after=killed):
        make(digits, few, place)
    torch.manual_seed(2)
    with stored() as rest:
        resumed, again = make(digits, few, place)
    assert same_weights(unbroken, resumed) and again == facts and killed + len(rest) == whole
    place.write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"training\.pt is damaged; delete it"):
        make(digits, few, place)
