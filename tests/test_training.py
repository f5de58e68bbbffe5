"""Training: it learns, resumes exactly and says when it fails; adversarial training does what its
papers say."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR

from advprune.attacks.pgd import pgd
from advprune.core.errors import UserError
from advprune.core.files import sha256_of
from advprune.core.profile import Profile
from advprune.core.train_settings import (
    DataSettings,
    FineTuneSettings,
    ModelSettings,
    RecipeSettings,
    TrainSettings,
    WeightsSettings,
)
from advprune.data import prepare
from advprune.training.adversarial import Inner, Method, pgd_images
from advprune.training.inputs import Inputs
from advprune.training.networks import load_or_train
from advprune.training.standard import Trainer, accuracy, augment
from conftest import make_network, same_weights, stored

EPS = 48 / 255
SETTINGS = TrainSettings(epochs=4, batch=16, lr=0.05, label_smoothing=0.1, crop=1, eps=EPS)
ATTACKING = ["pgd", "trades", "mixed"]


def trainer(pair, state, recipe=None, **changes):
    """A trainer on the digits."""
    images = (pair[0] * 255).round().to(torch.uint8)
    data, settings = (images, pair[1]), SETTINGS.model_copy(update=changes)
    chosen = RecipeSettings(**recipe or {})
    return Trainer(make_network(pair[0]), data, data, settings, chosen, 0, state)


@pytest.fixture(scope="module")
def splits():
    """1146 real digits to train on and 202 to validate with."""
    settings = {"val_fraction": 0.15, "test_fraction": 0.25, "test_limit": 16}
    return prepare(DataSettings(source="digits", **settings))


def test_a_killed_run_ends_as_an_unbroken_one(digits, tmp_path):
    recipe = {"method": "pgd", "steps": 2}
    unbroken = trainer(digits, tmp_path / "a.pt", recipe=recipe)
    history = unbroken.run()
    with stored(kill_after=2):
        trainer(digits, tmp_path / "b.pt", recipe=recipe).run()
    resumed = trainer(digits, tmp_path / "b.pt", recipe=recipe)
    assert resumed.run() == history and len(history) == 4
    assert same_weights(unbroken.model, resumed.model)


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


@pytest.mark.parametrize("method", ["standard", "pgd"])
def test_a_loss_that_is_no_number_is_an_error(method, digits, tmp_path):
    run = trainer(digits, tmp_path / "a.pt", recipe={"method": method})
    run.model.linear.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"not a number; lower train\.lr"):
        run.run()


def test_a_damaged_state_is_named(digits, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"a\.pt is damaged; delete it"):
        trainer(digits, tmp_path / "a.pt").run()


def test_a_last_batch_of_one_image_is_left_out(digits, tmp_path):
    run = trainer((digits[0][:33], digits[1][:33]), tmp_path / "a.pt", epochs=1)
    run.run()
    assert run._batches(33) == 2 and run._batches(34) == 3 and run._batches(5) == 1


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


def grey(n):
    """Images so far from 0 and 1 that a budget of 0.1 is never cut, and labels."""
    images = 0.4 + 0.2 * torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    return images, torch.arange(n) % 2


def worst(linear, y):
    """The direction in which two classes' linear logits go wrong fastest, `[N, 3, 4, 4]`."""
    towards = (linear.weight[1] - linear.weight[0]).detach().sign().view(1, 3, 4, 4)
    return torch.where(y.view(-1, 1, 1, 1) == 0, towards, -towards)


def test_pgd_finds_the_known_worst_case_of_a_linear_model(linear):
    x, y = grey(8)
    found = pgd_images(linear, x, y, Inner(0.1, 0.03, 7), torch.Generator().manual_seed(0))
    assert torch.allclose(found, x + 0.1 * worst(linear, y), atol=1e-6)


def test_mixed_attacks_a_share_of_the_batch(linear):
    (x, y), generator = grey(10), torch.Generator()
    recipe = RecipeSettings(method="mixed", share=0.3, budget=0.5)
    method = Method(recipe, TrainSettings(batch=10, eps=0.2))
    found = method.craft(linear, x, y, generator)
    assert torch.allclose(found[:3], (x + 0.1 * worst(linear, y))[:3], atol=1e-6)
    assert torch.equal(found[3:], x[3:])
    none = Method(RecipeSettings(method="mixed", share=0.0), TrainSettings())
    assert none.craft(linear, x, y, generator) is x


def test_trades_moves_away_from_its_own_prediction(linear):
    x, y = grey(8)
    recipe = RecipeSettings(method="trades", steps=9)
    method = Method(recipe, TrainSettings(eps=0.1))
    found = method.craft(linear, x, y, torch.Generator().manual_seed(0))
    along = (found - x) * worst(linear, torch.zeros(8))  # either way raises the divergence
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
    expected = F.cross_entropy(natural, y, label_smoothing=0.1) + 3 * divergence
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


def test_robust_accuracy_is_that_of_the_validation_attack(digits, tmp_path):
    recipe = {"method": "pgd", "steps": 2, "budget": 0.5, "probe_steps": 5}
    run = trainer(digits, tmp_path / "a.pt", recipe=recipe)
    best = max(row["val_robust_accuracy"] for row in run.run())
    attacked = pgd(run.model, digits[0], digits[1], EPS / 2, 8 / 255, 5)
    assert abs(accuracy(run.model, attacked, digits[1]) - best) < 0.02


def test_the_usual_inner_steps_cross_the_ball():
    """PGD-3 with steps of eps/4 from the far side would not reach its middle."""
    lengths = [RecipeSettings(method="pgd", steps=n).stride for n in (1, 3, 5, 7, 10)]
    assert lengths == pytest.approx([1.8, 0.6, 0.36, 1.8 / 7, 0.25])
    assert RecipeSettings(method="pgd", steps=3, step="eps/2").stride == 0.5
    with pytest.raises(ValueError, match=r"3 steps of 0.25 eps cannot cross the ball"):
        FineTuneSettings(method="pgd", steps=3, step=0.25)
    inner = Method(RecipeSettings(method="pgd", steps=3, budget=0.5), SETTINGS).inner
    assert inner == pytest.approx((EPS / 2, 0.3 * EPS, 3))


def trained(splits, state, **recipe):
    """A network of width 4 after 8 epochs on 1146 digits."""
    settings = Profile.model_construct(
        model=ModelSettings(width=4),
        train=SETTINGS.model_copy(update={"epochs": 8, "lr": 0.1, "batch": 64}),
    )
    inputs = Inputs(splits["train"], splits["val"], 0, torch.device("cpu"), state)
    return load_or_train(settings, "any", RecipeSettings(**recipe), inputs)


def test_adversarial_training_makes_robust(splits, tmp_path):
    images, labels = splits["val"].images / 255, splits["val"].labels
    robust = {}
    for method in ("standard", "pgd"):
        recipe = {"method": method, "steps": 2, "budget": 0.5, "epochs": 8}
        model, history = trained(splits, tmp_path / f"{method}.pt", **recipe)
        attacked = pgd(model, images, labels, EPS / 2, 6 / 255, 10, drop=True)
        robust[method] = accuracy(model, attacked, labels)
        assert len(history) == 8
    assert robust["pgd"] > robust["standard"] + 0.15, robust


def test_weights_given_for_a_recipe_are_loaded(splits, tmp_path):
    val, short = splits["val"], SETTINGS.model_copy(update={"epochs": 1, "batch": 256})
    inputs = Inputs(splits["train"], val, 0, torch.device("cpu"))
    first = make_network(val.images / 255)
    torch.save(first.state_dict(), tmp_path / "w.pt")
    given = WeightsSettings(path=str(tmp_path / "w.pt"), sha256=sha256_of(tmp_path / "w.pt"))
    model = ModelSettings(width=4, weights={"given": given})
    settings = Profile.model_construct(model=model, train=short)
    found, history = load_or_train(settings, "given", RecipeSettings(), inputs)
    other, trained = load_or_train(settings, "other", RecipeSettings(), inputs)
    expected = {"epoch": 0, "val_accuracy": round(accuracy(found, val.images, val.labels), 4)}
    assert history == [expected] and "train_loss" in trained[0]
    assert torch.equal(found.linear.weight, first.linear.weight)
    assert not torch.equal(other.linear.weight, first.linear.weight)
