"""The project's attacks beside those of other packages: same trained model, images and steps.

Attacks of one kind take turns, round by round, and each ratio is taken within a round, so that
drift in the machine's speed does not matter. The same run also measures the limits of the device:
bare gradient passes of the network, and the rate of a large matrix product.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import typer
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advprune.attacks import attack
from advprune.attacks.cost import Cost
from advprune.attacks.engine import Mixed, attack_copy
from advprune.attacks.losses import margin
from advprune.attacks.opening import expected_gradient
from advprune.core.train_settings import DataSettings
from advprune.data import load_split, prepare, to_float
from advprune.models.checkpoint import load_model
from advprune.models.fold import Replayed
from advprune.training.adversarial import Inner, climb

ROOT = Path(__file__).resolve().parent.parent


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


@dataclass
class Row:
    """One attack: seconds of each round, and what it did in the last one."""

    kind: str
    name: str
    attack: Attack
    tf32: bool = False
    seconds: list[float] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    fooled: int = 0
    robust: float = 0.0


def ours(s: Setting, precision: str = "float32") -> dict[str, Attack]:
    """The project's attacks by kind."""
    fixed = {"step": s.eps / 4, "steps": s.steps, "random_start": False}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "PGD": ("pgd", fixed),
        "PGD, dropping": ("pgd", fixed | {"drop": True}),
        "APGD-CE": ("apgd", {"steps": s.search}),
        "APGD-T": ("apgd", {"steps": s.search, "loss": "targeted", "targets": s.targets}),
        "minimum norm": ("minimum_norm", {"steps": s.search}),
    }

    def call(name: str, options: dict[str, Any]) -> Attack:
        how = options | {"eps": s.eps, "batch": s.batch, "precision": precision}
        return lambda m, x, y, c: attack(name, m, x, y, cost=c, **how)

    return {kind: call(*one) for kind, one in kinds.items()}


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

    def counted(model: nn.Module, x: Tensor, y: Tensor, cost: Cost) -> Tensor:
        watched = copy.deepcopy(model)
        cost.watch(watched)
        pairs = zip(x.split(batch), y.split(batch), strict=True)
        return torch.cat([call(watched, *pair) for pair in pairs])

    return counted


def peers(s: Setting) -> list[Row]:
    """The attacks of whatever other packages are installed."""
    rows = list[Row]()
    for name, (module, make) in PEERS.items():
        try:
            calls = make(import_module(module), s)
        except ImportError as error:
            print(f"without {name}: {error}", file=sys.stderr)
            continue
        rows += [Row(kind, name, batched(call, s.batch)) for kind, call in calls.items()]
    return rows


def replayed(s: Setting, bf16: bool) -> Attack:
    """PGD whose gradient passes a GPU replays as a graph; recorded anew, as for a new model."""
    inner = Inner(s.eps, s.eps / 4, s.steps)

    def part(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = partial(nn.functional.cross_entropy, target=y, reduction="sum")
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            return climb(Replayed(attack_copy(model, x.device), x), x, x, loss, inner).clone()

    def counted(model: nn.Module, x: Tensor, y: Tensor, cost: Cost) -> Tensor:
        cost.forwards = cost.gradients = len(x) * s.steps
        return batched(part, s.batch)(model, x, y, Cost())

    return counted


def rows_of(s: Setting, cuda: bool) -> list[Row]:
    """All attacks of the run, others' first within a kind."""
    rows, fixed = peers(s), ours(s)
    order = [*fixed]
    rows += [Row(kind, "ours", attack) for kind, attack in fixed.items()]
    del fixed["PGD, dropping"]
    low = ours(s, "bfloat16")
    rows += [Row(kind, "ours, bfloat16", low[kind]) for kind in fixed]
    if cuda:
        rows += [Row(kind, "ours, TF32", attack, True) for kind, attack in fixed.items()]
        peer = [r for r in rows if (r.kind, r.name) == ("PGD", "torchattacks")]
        rows += [Row(r.kind, f"{r.name}, TF32", r.attack, True) for r in peer]
        rows += [Row("PGD", "ours, CUDA graph", replayed(s, False))]
        rows += [Row("PGD", "ours, CUDA graph, bfloat16", replayed(s, True))]
    return sorted(rows, key=lambda row: order.index(row.kind))


@contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Whether convolutions and products may round float32 to 19 bits, on GPUs that can."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What `work` returns, and the seconds it took."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - started


def measure(
    rows: list[Row], model: nn.Module, data: tuple[Tensor, Tensor], s: Setting, until: float
) -> None:
    """Run every attack in every round, `s.batch` images at a time, and once on a batch to warm up.

    No round but the first begins that would not end before `until`.
    """
    images, labels = data
    rights = answers(model, images, s.batch) == labels
    began = time.perf_counter()
    for turn in range(s.rounds + 1):
        if turn > 1 and 2 * time.perf_counter() - began > until:
            break
        began, count = time.perf_counter(), len(images) if turn else s.batch
        for row in rows:
            x, y, right, row.cost = images[:count], labels[:count], rights[:count], Cost()
            with matmul_precision(row.tf32):
                found, took = timed(partial(row.attack, model, x, y, row.cost), x.device)
            inside = (found - x).flatten(1).abs().amax(1) <= s.eps + 1e-6
            fooled = right & inside & (answers(model, found, s.batch) != y)
            row.fooled, row.robust = int(fooled.sum()), float((right & ~fooled).float().mean())
            row.seconds += [took] * (turn > 0)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor, batch: int) -> Tensor:
    """The classes that a model gives."""
    return torch.cat([model(x).argmax(1) for x in images.split(batch)])


def limits(model: nn.Module, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """By precision: matrix products (TFLOP/s), the network's bare gradient passes (images/s), and
    the images per second that the matrix rate would allow."""
    network, cuda = attack_copy(model, x.device), x.is_cuda
    point = x.contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(point)
    # To the images, a backward pass costs what a forward pass does.
    per_image, size = 2 * counter.get_total_flops() / len(x), 8192 if cuda else 1024
    found = []
    for name in ("float32", "TF32", "bfloat16") if cuda else ("float32", "bfloat16"):
        rounded = name == "bfloat16"
        kind, bare = (torch.bfloat16, Mixed(network)) if rounded else (torch.float32, network)
        a, b = (torch.randn(size, size, device=x.device, dtype=kind) for _ in range(2))
        work = partial(torch.matmul, a, b), partial(expected_gradient, bare, point, y, margin)
        with matmul_precision(name == "TF32"):
            product, passes = (min(timed(w, x.device)[1] for _ in range(6)) for w in work)
        rate, row = 2 * size**3 / product, dict[str, Any](precision=name)
        row["matrix TFLOP/s"] = round(rate / 1e12, 3)
        row["bare passes, image-steps/s"] = round(len(x) / passes, 1)
        row["matrix limit, image-steps/s"] = round(rate / per_image, 1)
        found.append(row)
    return found


def summary(rows: list[Row], s: Setting, count: int) -> list[dict[str, Any]]:
    """What the table shows of each attack; ratios are to the first other package of its kind."""
    first: dict[str, Row] = {}
    found = []
    for row in rows:
        base = first.setdefault(row.kind.partition(",")[0], row)
        seconds, cost = median(row.seconds), row.cost
        passes = cost.forwards + cost.gradients
        steps = count * s.steps if row.kind == "PGD" else cost.gradients
        ratio = median(a / b for a, b in zip(base.seconds, row.seconds, strict=True))
        found.append(
            {
                "kind": row.kind,
                "attack": row.name,
                "seconds": round(seconds, 4),
                "ratio": round(ratio, 2),
                "image-passes": passes,
                "image-steps/s": round(steps / seconds, 1),
                "robust accuracy %": round(100 * row.robust, 2),
                "ms/decided": round(1000 * seconds / max(row.fooled, 1), 3),
                "passes/decided": round(passes / max(row.fooled, 1), 1),
                "rounds": [round(value, 4) for value in row.seconds],
            }
        )
    return found


def main(
    weights: Annotated[Path, typer.Option(help="A checkpoint of this library.")] = (
        ROOT / "weights" / "digits" / "dense-robust.fp16.safetensors"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Folder with test.safetensors; else the embedded digits.")
    ] = None,
    eps: Annotated[float, typer.Option(help="Linf budget in grey levels.")] = 48,
    images: Annotated[int, typer.Option(help="How many test images.")] = 128,
    batch: Annotated[int, typer.Option(help="Images at a time, of all attacks.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps of PGD, of length eps/4.")] = 20,
    search: Annotated[int, typer.Option(help="Steps of APGD and of minimum-norm attacks.")] = 20,
    targets: Annotated[int, typer.Option(help="Target classes of APGD-T.")] = 4,
    rounds: Annotated[int, typer.Option(help="Counted rounds.")] = 2,
    seconds: Annotated[float, typer.Option(help="No later round begins that exceeds this.")] = 300,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers there, as JSON.")] = None,
) -> None:
    """Print the limits of the device and the table of attacks."""
    until = time.perf_counter() + seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    s = Setting(eps / 255, steps, search, targets, batch, rounds)
    model = load_model(weights).to(device).requires_grad_(False)
    if data is not None:
        x, y = load_split(data, "test")
    else:
        test = prepare(DataSettings(source="digits"))["test"]
        x, y = to_float(test.images), test.labels
    x, y = x[:images].to(device), y[:images].to(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    with matmul_precision(False):
        bounds = limits(model, x[:batch], y[:batch])
        rows = rows_of(s, device.type == "cuda")
        measure(rows, model, (x, y), s, until)
    table = summary(rows, s, len(x))
    print(f"what the device can do: {name}, {torch.get_num_threads()} threads")
    print(tabulate(bounds, "keys", "github", intfmt=","))
    print(f"{weights.name}, {len(x)} images, eps {eps:g}/255")
    shown = [{key: value for key, value in row.items() if key != "rounds"} for row in table]
    print(tabulate(shown, "keys", "github", intfmt=","))
    if out is not None:
        about: dict[str, Any] = {"device": name, "torch": torch.__version__}
        about |= {"weights": weights.name, "threads": torch.get_num_threads()}
        about |= {"images": len(x), "settings": asdict(s)}
        out.write_text(json.dumps(about | {"limits": bounds, "attacks": table}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
