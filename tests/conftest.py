"""Shared fixtures: small networks with settled batch-norm, and a handful of real digits."""

import copy
import gc
import os
import sys

# Tests run on all cores (pytest-xdist), each with a single thread, which torch asks for when it is
# imported. They count calls and patch functions, so all work is done in their own process; tests
# of whole stages take that back.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ADVPRUNE_WORKERS"] = "1"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start share compiled code

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import short
import torch
from torch import nn

from advprune.attacks.minimum_norm import minimum_norm
from advprune.attacks.registry import given
from advprune.cli.app import main
from advprune.core.train_settings import DataSettings
from advprune.data import prepare
from advprune.models.checkpoint import build, load_model, save_model
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec, spec_of
from advprune.training.inputs import save_state

gc.set_threshold(100_000)  # as stages do


SLOW = (
    *("end_to_end", "kill", "own_model", "installed", "distributed", "attacks", "trained", "onnx"),
    *("square_autoattack", "verdict", "cli", "studies", "binary", "gate", "fuzz_outside", "fuzz"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest begin first, so that no core waits for one of them at the end.

    (`make test` gives files to cores in this order.)
    """
    first = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: first.get(item.path.stem, len(SLOW)))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `advprune …` in this process: exit status, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["advprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations outside of a project run attacks of few steps."""
    short.install(monkeypatch.setattr)


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """64 real digits: float images [64, 1, 8, 8] in [0, 1] and labels."""
    settings = DataSettings(source="digits", val_fraction=0.15, test_fraction=0.25, test_limit=64)
    test = prepare(settings)["test"]
    return test.images / 255, test.labels


def make_network(
    images: torch.Tensor, architecture: str = "resnet18", width: int = 4, classes: int = 10
) -> nn.Module:
    """An untrained network whose batch-norm statistics have seen `images`; a copy where another
    test has asked for the same."""
    key = (images.numpy().tobytes(), images.shape, images.dtype, architecture, width, classes)
    if key not in MADE:
        MADE[key] = _settled(images, architecture, width, classes)
    return copy.deepcopy(MADE[key])


MADE: dict[Any, nn.Module] = {}  # by what it is made of


def _settled(images: torch.Tensor, architecture: str, width: int, classes: int) -> nn.Module:
    channels = images.shape[1]
    spec = ModelSpec(
        architecture=architecture,
        width=width,
        channels=channels,
        classes=classes,
        mean=(0.3,) * channels,
        std=(0.4,) * channels,
    )
    model = build(spec)
    initialize(model, torch.Generator().manual_seed(0))
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(images)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # batch-norm's affine and the bias: not just ones and zeros
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.data += 0.1 * noise
    return model.eval()


# Small networks of other collections: name and options.
VIT = "timm/vit_tiny_patch16_224"
FOREIGN: dict[str, dict[str, Any]] = {
    VIT: {"img_size": 32, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2},
    "torchvision/mobilenet_v2": {"width_mult": 0.25},
}


def make_foreign(name: str, images: torch.Tensor) -> nn.Module:
    """An untrained network of FOREIGN for 10 classes whose batch-norm statistics have seen the
    images; skips the test where its package is missing."""
    pytest.importorskip(name.partition("/")[0])
    if (key := (images.numpy().tobytes(), name)) in MADE:
        return copy.deepcopy(MADE[key])
    sizes = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "classes": 10, "channels": 3}
    model = build(ModelSpec(architecture=name, options=FOREIGN[name], **sizes))
    initialize(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(20):
            model.train()(images)
    MADE[key] = model.eval()
    return copy.deepcopy(model)


@pytest.fixture
def network(digits: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    """A narrow ResNet18 for digits, untrained, in evaluation mode."""
    return make_network(digits[0])


@pytest.fixture(scope="session")
def small(digits: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    """The same of width 2, which no test changes."""
    return make_network(digits[0], width=2)


class Linear(nn.Module):
    """Logits `W x`: the best perturbation within any budget is known in closed form."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T

    def distance(self, x: torch.Tensor, labels: torch.Tensor, norm: str) -> torch.Tensor:
        """The smallest change that fools: `min_t (z_y - z_t) / |w_t - w_y|` in the dual norm."""
        logits, weight = self(x).detach(), self.weight.detach()
        gap = logits.gather(1, labels[:, None]) - logits  # [N, K]
        size = (weight - weight[labels][:, None]).norm(1 if norm == "Linf" else 2, dim=2)
        return (gap / size).masked_fill(size == 0, torch.inf).amin(1)

    def worst(self, labels: torch.Tensor) -> torch.Tensor:
        """Of two classes: how the other one's logit gains most on the label's, `[N, 3, 4, 4]`."""
        weight = self.weight.detach()
        return (weight[1 - labels] - weight[labels]).view(-1, 3, 4, 4)


def grey_images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 3, 4, 4] far from 0 and 1, so that only the budget binds, and two labels."""
    noise = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return 0.4 + 0.2 * noise, torch.arange(n) % 2


@pytest.fixture
def linear() -> Linear:
    """Two classes on 3x4x4 images."""
    return Linear(torch.randn(2, 48, generator=torch.Generator().manual_seed(0)))


def linear_problem(norm: str) -> tuple[Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear model of five classes, grey images of 8 bits, its answers, and known distances."""
    generator = torch.Generator().manual_seed(2)
    model = Linear(torch.randn(5, 48, generator=generator))
    images = torch.randint(102, 153, (60, 3, 4, 4), generator=generator) / 255
    labels = model(images).argmax(1)
    return model, images, labels, model.distance(images, labels, norm)


def nearest(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and distances of the minimum-norm search, options by name."""
    return minimum_norm(model, images, labels, *given("minimum_norm", eps=0.0, **options))


def same_when_stored(
    model: nn.Module, images: torch.Tensor, folder: Path, factory: str | None = None
) -> nn.Module:
    """The model as a file gives it back: the same logits from the same random state."""
    save_model(model, folder / "model.safetensors")
    loaded, logits = load_model(folder / "model.safetensors", factory), []
    for one in (model, loaded):
        torch.manual_seed(5)
        logits.append(one(images))
    assert torch.equal(*logits) and spec_of(loaded) == spec_of(model) and not loaded.training
    return loaded


class Killed(Exception):
    """Stands for a kill."""


@contextmanager
def stored(kill_after: int | None = None) -> Iterator[list[Path | None]]:
    """Where trainings store their state meanwhile, once an epoch, and searches for tickets, at each
    choice of the mask; killed after so many."""
    found: list[Path | None] = []

    def counted(path: Path | None, state: dict[str, Any]) -> None:
        save_state(path, state)
        found.append(path)
        if len(found) == kill_after:
            raise Killed

    ending = pytest.raises(Killed) if kill_after else nullcontext()
    with pytest.MonkeyPatch.context() as patch, ending:
        for place in ("training.standard", "pruning.ticket_search"):
            patch.setattr(f"advprune.{place}.save_state", counted)
        yield found


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same tensors."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
