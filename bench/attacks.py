"""The project's attacks beside those of other packages: same trained model, images and steps.

All attacks take turns, round by round, and each ratio is taken within a round, so that drift in the
machine's speed does not matter.
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import typer
from tabulate import tabulate
from torch import Tensor, nn

from advprune.attacks import pgd
from advprune.attacks.apgd import APGDSettings, apgd
from advprune.attacks.cost import Cost
from advprune.attacks.minimum_norm import MinimumNormSettings, minimum_norm
from advprune.core.train_settings import DataSettings
from advprune.data import load_split, prepare, to_float
from advprune.models.checkpoint import load_model

WEIGHTS = Path(__file__).resolve().parent.parent / "weights/digits/dense-robust.fp16.safetensors"
KINDS = ("PGD", "APGD-CE", "APGD-T", "minimum norm")
TARGETS = 4  # classes of APGD-T
Call = Callable[[nn.Module, Tensor, Tensor], Tensor]
Attack = Callable[[nn.Module, Tensor, Tensor, Cost], Tensor]


@dataclass(frozen=True)
class Setting:
    """What all attacks share. search: steps of APGD and of minimum-norm attacks."""

    eps: float
    steps: int
    search: int
    batch: int


@dataclass
class Row:
    """One attack: seconds of each round, and what it did in the last one."""

    kind: str
    name: str
    attack: Attack
    seconds: list[float] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    robust: float = 0.0


def ours(s: Setting, precision: str) -> dict[str, Attack]:
    """The project's attacks by kind."""
    shared: dict[str, Any] = {"batch": s.batch, "precision": precision}
    fixed = (s.eps, s.eps / 4, s.steps)
    plain = APGDSettings(s.eps, s.search, **shared)
    targeted = replace(plain, loss="targeted", targets=TARGETS)
    near = MinimumNormSettings(steps=s.search, **shared)
    return {
        "PGD": lambda m, x, y, c: pgd(m, x, y, *fixed, random_start=False, cost=c, **shared),
        "APGD-CE": lambda m, x, y, c: apgd(m, x, y, replace(plain, cost=c)),
        "APGD-T": lambda m, x, y, c: apgd(m, x, y, replace(targeted, cost=c)),
        "minimum norm": lambda m, x, y, c: minimum_norm(m, x, y, replace(near, cost=c))[0],
    }


def of_torchattacks(package: Any, s: Setting) -> dict[str, Call]:
    """Its targeted APGD always takes all wrong classes."""
    eps, search = {"eps": s.eps}, {"eps": s.eps, "steps": s.search}
    fixed = eps | {"alpha": s.eps / 4, "steps": s.steps, "random_start": False}
    return {
        "PGD": lambda m, x, y: package.PGD(m, **fixed)(x, y),
        "APGD-CE": lambda m, x, y: package.APGD(m, **search)(x, y),
        "APGD-T": lambda m, x, y: package.APGDT(m, **search)(x, y),
    }


def of_pyautoattack(package: Any, s: Setting) -> dict[str, Call]:
    """Its two forms of APGD."""
    plain = {"n_iter": s.search, "eps": s.eps}
    targeted = plain | {"n_target_classes": TARGETS}
    return {
        "APGD-CE": lambda m, x, y: package.APGDAttack(m, **plain).perturb(x, y),
        "APGD-T": lambda m, x, y: package.APGDAttack_targeted(m, **targeted).perturb(x, y),
    }


def of_foolbox(package: Any, s: Setting) -> dict[str, Call]:
    """PGD and the fast minimum-norm attack."""
    fixed = {"abs_stepsize": s.eps / 4, "steps": s.steps, "random_start": False}
    kinds = package.attacks.LinfPGD(**fixed), package.attacks.LInfFMNAttack(steps=s.search)

    def call(kind: int, eps: float | None) -> Call:
        return lambda m, x, y: kinds[kind](
            package.PyTorchModel(m, (0, 1), x.device), x, y, epsilons=eps
        )[1]

    return {"PGD": call(0, s.eps), "minimum norm": call(1, None)}


def of_adversarial_library(package: Any, s: Setting) -> dict[str, Call]:
    """All four kinds."""
    linf, step = float("inf"), s.eps / 4
    fixed = {"steps": s.steps, "random_init": False, "absolute_step_size": step}
    ce = {"n_iter": s.search, "loss_function": "ce"}
    targeted = {"n_iter": s.search, "num_targets": TARGETS}
    return {
        "PGD": lambda m, x, y: package.pgd_linf(m, x, y, s.eps, **fixed),
        "APGD-CE": lambda m, x, y: package.apgd(m, x, y, s.eps, linf, **ce),
        "APGD-T": lambda m, x, y: package.apgd_targeted(m, x, y, s.eps, linf, **targeted),
        "minimum norm": lambda m, x, y: package.fmn(m, x, y, linf, steps=s.search),
    }


PEERS = {
    "torchattacks": ("torchattacks", of_torchattacks),
    "pyautoattack": ("pyautoattack.autopgd_base", of_pyautoattack),
    "foolbox": ("foolbox", of_foolbox),
    "adversarial-library": ("adv_lib.attacks", of_adversarial_library),
}


def batched(call: Call, batch: int) -> Attack:
    """An attack that makes no batches itself, on a copy of the model that counts what passes."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, cost: Cost) -> Tensor:
        watched = copy.deepcopy(model)
        cost.watch(watched)
        pairs = zip(x.split(batch), y.split(batch), strict=True)
        return torch.cat([call(watched, *pair) for pair in pairs])

    return attack


def rows_of(s: Setting) -> Iterator[Row]:
    """All attacks of the run: of the other packages that are installed, then ours."""
    for name, (module, make) in PEERS.items():
        try:
            package = import_module(module)
        except ImportError as error:
            print(f"without {name}: {error}", file=sys.stderr)
            continue
        for kind, call in make(package, s).items():
            yield Row(kind, name, batched(call, s.batch))
    for precision in ("float32", "bfloat16"):
        for kind, attack in ours(s, precision).items():
            yield Row(kind, f"ours, {precision}", attack)


@torch.no_grad()
def right(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Which images a model classifies correctly, `[N]`."""
    return torch.cat([model(x).argmax(1) for x in images.split(batch)]) == labels


def measure(rows: list[Row], model: nn.Module, x: Tensor, y: Tensor, s: Setting) -> None:
    """Run every attack once and note what it took and what it left."""
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    for row in rows:
        row.cost = Cost()
        wait()
        started = time.perf_counter()
        found = row.attack(model, x, y, row.cost)
        wait()
        row.seconds.append(time.perf_counter() - started)
        inside = (found - x).flatten(1).abs().amax(1) <= s.eps + 1e-6
        left = right(model, torch.where(inside[:, None, None, None], found, x), y, s.batch)
        row.robust = float((left & right(model, x, y, s.batch)).float().mean())


def main(
    weights: Annotated[Path, typer.Option(help="A checkpoint of this library.")] = WEIGHTS,
    data: Annotated[
        Path | None, typer.Option(help="Folder with test.safetensors; else the embedded digits.")
    ] = None,
    eps: Annotated[float, typer.Option(help="Linf budget in grey levels.")] = 48,
    images: Annotated[int, typer.Option(help="How many test images.")] = 128,
    batch: Annotated[int, typer.Option(help="Images at a time, of all attacks.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps of PGD, of length eps/4.")] = 20,
    search: Annotated[int, typer.Option(help="Steps of APGD and of minimum-norm attacks.")] = 20,
    rounds: Annotated[int, typer.Option(help="Counted rounds.")] = 2,
) -> None:
    """Print the table of attacks; ratios are to the first other package of a kind."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    s = Setting(eps / 255, steps, search, batch)
    model = load_model(weights).to(device).requires_grad_(False)
    if data is not None:
        x, y = load_split(data, "test")
    else:
        test = prepare(DataSettings(source="digits"))["test"]
        x, y = to_float(test.images), test.labels
    x, y = x[:images].to(device), y[:images].to(device)
    rows = sorted(rows_of(s), key=lambda row: KINDS.index(row.kind))
    measure(rows, model, x[:batch], y[:batch], s)  # warms up
    for row in rows:
        row.seconds.clear()
    for _ in range(rounds):
        measure(rows, model, x, y, s)
    first: dict[str, Row] = {}
    shown = []
    for row in rows:
        base = first.setdefault(row.kind, row)
        ratios = (a / b for a, b in zip(base.seconds, row.seconds, strict=True))
        cells = {"kind": row.kind, "attack": row.name, "seconds": round(median(row.seconds), 4)}
        cells |= {"ratio": round(median(ratios), 2)}
        cells |= {"image-passes": row.cost.forwards + row.cost.gradients}
        shown.append(cells | {"robust accuracy %": round(100 * row.robust, 2)})
    name = torch.cuda.get_device_name() if x.is_cuda else "CPU"
    print(f"{weights.name}, {len(x)} images, eps {eps:g}/255, {name}")
    print(tabulate(shown, "keys", "github", intfmt=","))


if __name__ == "__main__":
    typer.run(main)
