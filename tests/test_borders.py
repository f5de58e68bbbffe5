"""What enters the library is made right, or refused in one line that says what is wrong."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from advprune import attacks, evaluate, prune
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_state import APGDSettings
from advprune.attacks.minimum_norm import MinimumNormSettings, minimum_norm
from advprune.attacks.square import square
from advprune.core.errors import UserError
from advprune.data import prepare
from advprune.quantization.post_training import quantize

Pair = tuple[torch.Tensor, torch.Tensor]


class Wrapped(nn.Module):
    """A model whose answer is changed by a function."""

    def __init__(self, model: nn.Module, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: torch.Tensor) -> Any:
        return self.change(self.model(x))


def flat() -> nn.Module:
    """A linear model of ten classes on digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


ATTACKS: dict[str, Callable[..., Any]] = {
    "pgd": lambda m, x, y, eps=0.1: attacks.pgd(m, x, y, eps, 0.02, 2),
    "square": lambda m, x, y, eps=0.1: square(m, x, y, eps, queries=2),
    "apgd": lambda m, x, y, eps=0.1: apgd(m, x, y, APGDSettings(eps=eps, steps=2)),
    "minimum_norm": lambda m, x, y, eps=0.1: minimum_norm(m, x, y, MinimumNormSettings(steps=2)),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dict": (lambda: Wrapped(flat(), lambda z: {"logits": z}), "returns dict, not logits"),
    "tuple": (lambda: Wrapped(flat(), lambda z: (z, None)), "returns tuple, not logits"),
    "squeezed": (lambda: Wrapped(flat(), lambda z: z[0]), r"returns \[10\] for 2 images"),
    "half": (lambda: copy.deepcopy(flat()).bfloat16(), "computes in torch.bfloat16"),
    "probabilities": (lambda: Wrapped(flat(), lambda z: z.softmax(1)), "returns probabilities"),
    "integers": (lambda: Wrapped(flat(), lambda z: z.argmax(1, keepdim=True)), "not floats"),
    "NaN": (lambda: Wrapped(flat(), lambda z: z * float("nan")), "returns NaN"),
    "squeezed alone": (lambda: Wrapped(flat(), lambda z: z.squeeze()), r"\[10\] for 1 images"),
    "batch": (lambda: Wrapped(flat(), lambda z: z - z.mean(0)), "depend on the other images"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_gives_no_logits_is_refused(attack: str, kind: str, digits: Pair) -> None:
    made, words = MODELS[kind]
    model, state = made(), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{attack}: .*{words}"):
        ATTACKS[attack](model, *digits)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x.double(), y), "images are torch.float64"),
        (lambda x, y: ((255 * x).to(torch.uint8), y), "images are torch.uint8"),
        (lambda x, y: (255 * x, y), "outside"),
        (lambda x, y: (x, y.int()), "labels are torch.int32"),
        (lambda x, y: (x, y * 0 - 100), "a label is below 0"),
        (lambda x, y: (x, y + 10), "label 19 is none of 10 classes"),
        (lambda x, y: (x, y[1:]), "63 labels for 64 images"),
    ],
)
def test_images_and_labels_of_another_kind_are_refused(
    attack: str, change: Callable[[Any, Any], Pair], words: str, digits: Pair
) -> None:
    with pytest.raises(ValueError, match=words):
        ATTACKS[attack](flat(), *change(*digits))


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"minimum_norm"}))
@pytest.mark.parametrize("eps", [8, float("nan"), -0.1])
def test_a_budget_that_makes_no_sense_is_refused(attack: str, eps: float, digits: Pair) -> None:
    with pytest.raises(ValueError, match=f"{attack}: eps is"):
        ATTACKS[attack](flat(), *digits, eps)


def test_a_model_in_training_mode_is_scored_in_evaluation_mode(
    network: nn.Module, digits: Pair
) -> None:
    images, labels = digits
    expected = evaluate.score(network, images, images, labels)
    training = copy.deepcopy(network).train()
    before = {name: tensor.clone() for name, tensor in training.state_dict().items()}
    for batch in (2, 64):
        found = evaluate.score(training, images, images, labels, batch=batch)
        assert (found.clean_pred == expected.clean_pred).all()
    attacks.pgd(training, images, labels, 0.1, 0.05, 1)
    assert training.training
    assert all(torch.equal(before[name], t) for name, t in training.state_dict().items())


def test_images_of_0_to_255_are_no_training_data(network: nn.Module, digits: Pair) -> None:
    images, labels = digits
    for wrong in ((255 * images).to(torch.uint8), 255 * images):
        with pytest.raises(UserError, match=r"clamp: training data: images"):
            prune("clamp", network, 3.0, (wrong, labels))
        with pytest.raises(ValueError, match="quantize: images"):
            quantize(network, wrong)


def test_pictures_of_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for index in range(8):
            picture = Image.new("RGB", (8, 8), (20 * index, 0, 0))
            picture.save(tmp_path / "train" / kind / f"{index}.png")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not a picture")
    assert sum(len(s.labels) for s in prepare("imagefolder", root=str(tmp_path)).values()) == 16
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "dog" / "x.bmp")
    with pytest.raises(UserError, match=r"1 pictures are neither PNG nor JPEG, such as 'train/dog"):
        prepare("imagefolder", root=str(tmp_path))
