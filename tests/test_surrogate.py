"""Networks of an attacker's own: surrogates learn labels, substitutes what a target says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advprune.core.profile import Profile
from advprune.core.train_settings import (
    DataSettings,
    ModelSettings,
    SurrogateSettings,
    TrainSettings,
)
from advprune.data import Split, prepare, to_float
from advprune.models.checkpoint import save_model
from advprune.models.spec import spec_of
from advprune.pruning import prune
from advprune.quantization.post_training import quantize
from advprune.training.standard import Trainer, accuracy
from advprune.training.surrogate import answers, train_surrogate

CPU = torch.device("cpu")
SETTINGS = Profile.model_construct(
    model=ModelSettings(width=4),
    train=TrainSettings(epochs=12, batch=32, lr=0.1),
)


class Killed(Exception):
    """Stands for a kill after an epoch."""


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    """600 digits to train on, and others."""
    settings = {"val_fraction": 0.15, "test_fraction": 0.25, "train_limit": 600}
    return prepare(DataSettings(source="digits", **settings))


@pytest.fixture(scope="module")
def victim(splits: dict[str, Split], tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A network that has learned to call every digit by the next one's name."""
    train, state = splits["train"], tmp_path_factory.mktemp("victim") / "a.pt"
    turned = Split(train.images, (train.labels + 1) % 10, train.classes, train.source)
    return train_surrogate(SETTINGS, SurrogateSettings(), turned, splits["val"], 5, CPU, state)[0]


@pytest.fixture(scope="module")
def substitute(
    splits: dict[str, Split], victim: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> nn.Module:
    """A substitute of it."""
    return copied(splits["train"], splits, victim, tmp_path_factory.mktemp("copy") / "a.pt")


def copied(
    train: Split, splits: dict[str, Split], target: nn.Module, state: Path, **change: Any
) -> nn.Module:
    choice = SurrogateSettings(**change)
    return train_surrogate(SETTINGS, choice, train, splits["val"], 0, CPU, state, target)[0]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@torch.no_grad()
def agreement(one: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    x = to_float(images)
    return float((one(x).argmax(1) == other(x).argmax(1)).float().mean())


def test_a_surrogate_learns_the_labels(splits: dict[str, Split], tmp_path: Path) -> None:
    given = SETTINGS, SurrogateSettings(), splits["train"], splits["val"], 0, CPU
    model, history = train_surrogate(*given, tmp_path / "a.pt")
    test = splits["test"]
    assert accuracy(model, test.images, test.labels) > 0.8
    assert len(history) == 12 and not model.training  # the profile's epochs


def test_a_substitute_learns_what_its_target_says_and_not_the_truth(
    splits: dict[str, Split], victim: nn.Module, substitute: nn.Module
) -> None:
    images, labels = splits["test"].images, splits["test"].labels
    assert accuracy(victim, images, (labels + 1) % 10) > 0.8
    assert agreement(substitute, victim, images) > 0.8
    assert accuracy(substitute, images, labels) < 0.1


def test_a_substitute_sees_no_label(
    splits: dict[str, Split], victim: nn.Module, substitute: nn.Module, tmp_path: Path
) -> None:
    train = splits["train"]
    blind = Split(train.images, torch.zeros_like(train.labels), train.classes, train.source)
    assert same(substitute, copied(blind, splits, victim, tmp_path / "a.pt"))


def test_answers_are_the_targets_probabilities_of_the_images_as_they_are(
    splits: dict[str, Split], victim: nn.Module
) -> None:
    images = splits["train"].images[:50]
    found = answers(victim, images, 16, 0)
    with torch.no_grad():
        one_by_one = torch.cat([victim(x[None] / 255).softmax(1) for x in images])
    assert torch.allclose(found, one_by_one, atol=1e-5) and found.shape == (50, 10)
    assert torch.allclose(found.sum(1), torch.ones(50)) and not found.requires_grad


def test_the_images_of_a_substitute_are_neither_shifted_nor_mirrored(
    splits: dict[str, Split], victim: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the target said of an image would not hold for a shifted one."""
    seen: list[Trainer] = []
    monkeypatch.setattr(Trainer, "run", lambda self: seen.append(self) or [])
    train = SETTINGS.train.model_copy(update={"flip": True, "crop": 1, "label_smoothing": 0.1})
    moving = SETTINGS.model_copy(update={"train": train})
    for target in (None, victim):
        given = (
            moving,
            SurrogateSettings(),
            splits["train"],
            splits["val"],
            0,
            CPU,
            tmp_path / "a.pt",
        )
        train_surrogate(*given, target)
    plain, copying = (trainer.settings for trainer in seen)
    assert (plain.flip, plain.crop, plain.label_smoothing) == (True, 1, 0.1)
    assert (copying.flip, copying.crop, copying.label_smoothing) == (False, 0, 0.0)
    assert seen[0].train[1] is splits["train"].labels
    assert torch.equal(seen[1].train[1], answers(victim, splits["train"].images, 32, 0))


def test_the_target_stays_as_it_was(
    splits: dict[str, Split], victim: nn.Module, tmp_path: Path
) -> None:
    victim.zero_grad()
    before = weights(victim)
    copied(splits["train"], splits, victim, tmp_path / "a.pt", epochs=1)
    after = weights(victim)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not victim.training and all(p.grad is None for p in victim.parameters())


def test_a_quantized_target_can_be_copied(
    splits: dict[str, Split], victim: nn.Module, tmp_path: Path
) -> None:
    integers = quantize(victim, to_float(splits["train"].images[:64]))
    found = copied(splits["train"], splits, integers, tmp_path / "a.pt", epochs=4)
    assert agreement(found, victim, splits["test"].images) > 0.5  # chance is 0.1


def test_the_same_seed_gives_the_same_file_and_another_another(
    splits: dict[str, Split], victim: nn.Module, tmp_path: Path
) -> None:
    def file(name: str, run_seed: int, seed: int) -> bytes:
        choice = SurrogateSettings(epochs=1, seed=seed)
        given = SETTINGS, choice, splits["train"], splits["val"], run_seed, CPU
        model, _ = train_surrogate(*given, tmp_path / f"{name}.pt", victim)
        save_model(model, tmp_path / f"{name}.safetensors")
        return (tmp_path / f"{name}.safetensors").read_bytes()

    first = file("a", 0, 1)
    torch.manual_seed(7)
    assert file("b", 0, 1) == first
    assert file("c", 0, 2) != first and file("d", 1, 1) != first


def test_a_surrogate_starts_elsewhere_than_the_dense_network(
    splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(Trainer, "run", lambda self: seeds.append(self.seed) or [])
    for seed in (0, 1, 2):
        choice = SurrogateSettings(seed=seed)
        given = SETTINGS, choice, splits["train"], splits["val"], 10, CPU
        train_surrogate(*given, tmp_path / "a.pt")
    assert seeds == [10, 11, 12]


@pytest.mark.parametrize(
    "change",
    [{}, {"architecture": "resnet20"}, {"width": 6}, {"architecture": "resnet20", "width": 2}],
)
def test_another_architecture_and_width(
    splits: dict[str, Split],
    change: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda self: [])
    choice = SurrogateSettings(epochs=1, **change)
    given = SETTINGS, choice, splits["train"], splits["val"], 0, CPU, tmp_path / "a.pt"
    model, _ = train_surrogate(*given)
    spec = spec_of(model)
    wanted = {"architecture": "resnet18", "width": 4} | change
    assert {"architecture": spec.architecture, "width": spec.width} == wanted
    assert (spec.channels, spec.classes) == (1, 10)
    pixels = to_float(splits["train"].images)  # its own normalization is of what it trains on
    assert spec.mean == (round(float(pixels.mean()), 4),)
    assert model(pixels[:2]).shape == (2, 10)


@pytest.mark.parametrize("copying", [False, True])
def test_a_killed_training_is_resumed(
    splits: dict[str, Split],
    victim: nn.Module,
    copying: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    choice, target = SurrogateSettings(epochs=2), victim if copying else None
    given = SETTINGS, choice, splits["train"], splits["val"], 0, CPU
    unbroken, history = train_surrogate(*given, tmp_path / "a.pt", target)
    store = Trainer._store

    def killed(self: Trainer, run: Any) -> None:
        store(self, run)
        raise Killed

    monkeypatch.setattr(Trainer, "_store", killed)
    with pytest.raises(Killed):
        train_surrogate(*given, tmp_path / "b.pt", target)
    monkeypatch.undo()
    steps = epochs_of(monkeypatch)
    resumed, again = train_surrogate(*given, tmp_path / "b.pt", target)
    assert same(unbroken, resumed) and again == history and len(history) == 2
    assert list(steps) == [1]  # the first epoch was not run a second time


def epochs_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The epochs that are run from here on, by number from 0."""
    run, seen = Trainer._epoch, []

    def counted(self: Trainer, state: Any, advance: Any) -> Any:
        seen.append(len(state.history))
        return run(self, state, advance)

    monkeypatch.setattr(Trainer, "_epoch", counted)
    return iter(seen)


def test_a_random_target_is_asked_several_times_from_the_seed(
    victim: nn.Module, splits: dict[str, Split]
) -> None:
    random, images = prune("SAP", victim, 0.5).model, splits["train"].images[:16]
    before = torch.random.get_rng_state()
    found = answers(random, images, 8, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found, answers(random, images, 8, 3))
    assert not torch.equal(found, answers(random, images, 8, 4))
