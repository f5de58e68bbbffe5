"""Training: it learns, it resumes exactly, and it says when it fails."""

from pathlib import Path

import pytest
import torch
from torch import nn

from advprune.errors import UserError
from advprune.params import TrainSettings
from advprune.training.standard import Trainer, accuracy, augment
from conftest import make_network

Pair = tuple[torch.Tensor, torch.Tensor]
SETTINGS = TrainSettings(epochs=4, batch=16, lr=0.05, label_smoothing=0.1, crop=1)


class Killed(Exception):
    """Stands for a kill between two epochs."""


def trainer(pair: Pair, state: Path, stop_after: int | None = None, **changes: object) -> Trainer:
    """A trainer on the digits, which may be killed after an epoch."""
    images = (pair[0] * 255).round().to(torch.uint8)

    def after(epoch: int) -> None:
        if epoch + 1 == stop_after:
            raise Killed

    settings = SETTINGS.model_copy(update=changes)
    model, data = make_network(pair[0]), (images, pair[1])
    return Trainer(model, data, data, settings, 0, state, after)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    digits: Pair, tmp_path: Path
) -> None:
    unbroken = trainer(digits, tmp_path / "a.pt")
    history = unbroken.run()
    with pytest.raises(Killed):
        trainer(digits, tmp_path / "b.pt", stop_after=2).run()
    resumed = trainer(digits, tmp_path / "b.pt")
    assert resumed.run() == history and len(history) == 4
    expected, found = state_of(unbroken.model), state_of(resumed.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_learns(digits: Pair, tmp_path: Path) -> None:
    run = trainer(digits, tmp_path / "a.pt", epochs=40, lr=0.1, crop=0)
    images = (digits[0] * 255).round().to(torch.uint8)
    before = accuracy(run.model, images, digits[1])
    history = run.run()
    assert before < 0.4 and accuracy(run.model, images, digits[1]) > 0.9
    assert history[-1]["val_accuracy"] == round(accuracy(run.model, images, digits[1]), 4)
    assert not run.model.training


def test_a_loss_that_is_no_number_is_an_error(digits: Pair, tmp_path: Path) -> None:
    run = trainer(digits, tmp_path / "a.pt")
    run.model.linear.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"not a number; lower train\.lr"):
        run.run()


def test_a_damaged_state_is_named(digits: Pair, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"a\.pt is damaged; delete it"):
        trainer(digits, tmp_path / "a.pt").run()


def test_a_last_batch_of_one_image_is_left_out(digits: Pair, tmp_path: Path) -> None:
    run = trainer((digits[0][:33], digits[1][:33]), tmp_path / "a.pt", epochs=1)
    run.run()
    assert run._batches(33) == 2 and run._batches(34) == 3 and run._batches(5) == 1


def test_flip_by_hand() -> None:
    images = torch.arange(40 * 6).view(40, 1, 2, 3)
    flipped = augment(images, True, 0, torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 8 < int(same.sum()) < 32


def test_crop_is_a_shift_with_zeros() -> None:
    images = torch.zeros(200, 1, 5, 5)
    images[:, 0, 2, 2] = 1.0
    shifted = augment(images, False, 2, torch.Generator().manual_seed(0))
    assert (shifted.flatten(1).sum(1) == 1).all()
    places = {tuple(p) for p in shifted[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(r, c) for r in range(5) for c in range(5)}
    images = torch.ones(200, 1, 5, 5)
    assert augment(images, False, 2, torch.Generator().manual_seed(0)).mean() < 0.9
