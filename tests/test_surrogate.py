"""Networks of an attacker's own: surrogates learn labels, substitutes what a target says."""

import pytest
import torch

from advprune.core.profile import Profile
from advprune.core.train_settings import (
    DataSettings,
    ModelSettings,
    SurrogateSettings,
    TrainSettings,
)
from advprune.data import Split, prepare, to_float
from advprune.models.spec import spec_of
from advprune.pruning import prune
from advprune.quantization.post_training import quantize
from advprune.training.inputs import Inputs
from advprune.training.networks import answers, train_surrogate
from advprune.training.standard import Trainer, accuracy
from conftest import same_weights, stored

MOVING = {"flip": True, "crop": 1, "label_smoothing": 0.1}
STILL = {"flip": False, "crop": 0, "label_smoothing": 0.0}
SETTINGS = Profile.model_construct(
    model=ModelSettings(width=4, strides=(2, 2, 1, 1)),
    train=TrainSettings(epochs=12, batch=32, lr=0.1),
)


@pytest.fixture(scope="module")
def splits():
    """600 digits to train on, and others."""
    settings = {"val_fraction": 0.15, "test_fraction": 0.25, "train_limit": 600}
    return prepare(DataSettings(source="digits", **settings))


def trained(splits, state, target=None, settings=SETTINGS, run_seed=0, **change):
    """A surrogate or, of a target, a substitute."""
    known = splits["train"], splits["val"], run_seed, torch.device("cpu"), state / "a.pt"
    return train_surrogate(settings, SurrogateSettings(**change), Inputs(*known), target)


@pytest.fixture(scope="module")
def victim(splits, tmp_path_factory):
    """A network that has learned to call every digit by the next one's name."""
    train = splits["train"]
    turned = Split(train.images, (train.labels + 1) % 10, train.classes, train.source)
    return trained(splits | {"train": turned}, tmp_path_factory.mktemp("victim"), run_seed=5)[0]


@torch.no_grad()
def agreement(one, other, images):
    x = to_float(images)
    return float((one(x).argmax(1) == other(x).argmax(1)).float().mean())


def test_a_substitute_learns_what_its_target_says_and_sees_no_label(splits, victim, tmp_path):
    victim.zero_grad()
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    train = splits["train"]
    blind = Split(train.images, torch.zeros_like(train.labels), train.classes, train.source)
    found, _ = trained(splits | {"train": blind}, tmp_path, victim)
    assert all(torch.equal(tensor, before[name]) for name, tensor in victim.state_dict().items())
    assert not victim.training and all(p.grad is None for p in victim.parameters())
    images, labels = splits["test"].images, splits["test"].labels
    assert accuracy(victim, images, (labels + 1) % 10) > 0.8
    assert agreement(found, victim, images) > 0.8 and accuracy(found, images, labels) < 0.1


def test_answers_are_the_targets_probabilities_of_the_images_as_they_are(splits, victim):
    images = splits["train"].images[:50]
    for target in (victim, quantize(victim, to_float(images))):
        found = answers(target, images, 16, 0)
        with torch.no_grad():
            one_by_one = torch.cat([target(x[None] / 255).softmax(1) for x in images])
        assert torch.allclose(found, one_by_one, atol=1e-5) and found.shape == (50, 10)
        assert torch.allclose(found.sum(1), torch.ones(50)) and not found.requires_grad


def test_a_random_target_is_asked_several_times_from_the_seed(victim, splits):
    random, images = prune("SAP", victim, 0.5).model, splits["train"].images[:16]
    before = torch.random.get_rng_state()
    found = answers(random, images, 8, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found, answers(random, images, 8, 3))
    assert not torch.equal(found, answers(random, images, 8, 4))


@pytest.fixture
def untrained(monkeypatch):
    """Training does nothing; who was asked to train."""
    seen = []
    monkeypatch.setattr(Trainer, "run", lambda self: seen.append(self) or [])
    return seen


def test_the_images_of_a_substitute_are_neither_shifted_nor_mirrored(
    splits, victim, untrained, tmp_path
):
    """What the target said of an image would not hold for a shifted one."""
    train = SETTINGS.train.model_copy(update=MOVING)
    for target in (None, victim):
        trained(splits, tmp_path, target, SETTINGS.model_copy(update={"train": train}))
    plain, copying = (one.settings.model_dump(include=set(MOVING)) for one in untrained)
    assert (plain, copying) == (MOVING, STILL)
    assert untrained[0].train[1] is splits["train"].labels and untrained[0].epochs == 12
    assert torch.equal(untrained[1].train[1], answers(victim, splits["train"].images, 32, 0))


@pytest.mark.parametrize(
    "change",
    [{}, {"architecture": "resnet20"}, {"width": 6}, {"architecture": "resnet20", "width": 2}],
)
def test_another_architecture_and_width(splits, change, untrained, tmp_path, capsys):
    model, _ = trained(splits, tmp_path, **change)
    spec = spec_of(model)
    wanted = {"architecture": "resnet18", "width": 4} | change
    assert {"architecture": spec.architecture, "width": spec.width} == wanted
    assert (spec.channels, spec.classes) == (1, 10)
    # Strides are one for each stage: another architecture has its own.
    assert spec.strides == (() if "architecture" in change else (2, 2, 1, 1))
    assert not capsys.readouterr().err
    usual = SETTINGS.model_copy(update={"model": ModelSettings(width=4)})
    trained(splits, tmp_path, settings=usual)
    assert "61% of the weights of resnet18 of width 4 meet only padding" in capsys.readouterr().err
    pixels = to_float(splits["train"].images)  # its own normalization is of what it trains on
    assert spec.mean == (round(float(pixels.mean()), 4),)
    assert model(pixels[:2]).shape == (2, 10)


def test_the_seed_is_added_to_the_runs_and_decides_all(splits, victim, untrained, tmp_path):
    one, other, third = (trained(splits, tmp_path, run_seed=10, seed=n)[0] for n in (0, 1, 2))
    assert [trainer.seed for trainer in untrained] == [10, 11, 12]
    assert not same_weights(one, other) and not same_weights(other, third)
    assert same_weights(other, trained(splits, tmp_path, run_seed=11, seed=0)[0])


def test_a_killed_run_goes_on(splits, victim, tmp_path):
    """The unbroken training starts from another global random state."""
    with stored(kill_after=1):
        trained(splits, tmp_path / "b", victim, epochs=2)
    torch.manual_seed(7)
    unbroken, history = trained(splits, tmp_path / "a", victim, epochs=2)
    with stored() as rest:  # the first epoch is not run a second time
        resumed, again = trained(splits, tmp_path / "b", victim, epochs=2)
    assert same_weights(unbroken, resumed) and again == history
    assert len(history) == 2 and len(rest) == 1
