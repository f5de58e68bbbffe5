"""The attacks of other packages, with the same images, budget and steps."""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from advprune.attacks.cost import Cost

Call = Callable[[nn.Module, Tensor, Tensor], Tensor]
Attack = Callable[[nn.Module, Tensor, Tensor, Cost], Tensor]


@dataclass(frozen=True)
class Setting:
    """What all attacks of the run share. search: steps of APGD and of minimum-norm attacks."""

    eps: float
    steps: int
    search: int
    targets: int
    batch: int
    rounds: int


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
    targeted = plain | {"n_target_classes": s.targets}
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
    pgd_ = {"steps": s.steps, "random_init": False, "absolute_step_size": step}
    ce = {"n_iter": s.search, "loss_function": "ce"}
    targeted = {"n_iter": s.search, "num_targets": s.targets}
    return {
        "PGD": lambda m, x, y: package.pgd_linf(m, x, y, s.eps, **pgd_),
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


def peers(s: Setting) -> Iterator[tuple[str, str, Attack]]:
    """Kind, name and attack of whatever other packages are installed."""
    for name, (module, make) in PEERS.items():
        try:
            package = import_module(module)
        except ImportError as error:
            print(f"without {name}: {error}", file=sys.stderr)
            continue
        for kind, call in make(package, s).items():
            yield kind, name, batched(call, s.batch)
