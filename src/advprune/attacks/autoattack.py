"""AutoAttack as published, by its authors' code in the package pyautoattack, made resumable.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks (ICML 2020). `standard`: APGD on the cross-entropy, targeted APGD on the
difference of logits ratio, targeted FAB (100 iterations each, up to 9 target classes) and Square
(5,000 queries). `rand`, for randomized models: APGD on both losses, with gradients averaged over 20
draws. Every setting is the package's own; only the loop over attacks and batches is ours, and
mirrors `AutoAttack.run_standard_evaluation`, without its checks of the kind of defence.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.attacks.square import check_images, check_options
from advprune.core.device import device_of
from advprune.core.distributed import same, spread
from advprune.core.errors import UserError
from advprune.core.resume import Parts

FEWEST = {"standard": 4, "rand": 3}  # classes that the (targeted) difference of logits ratio needs
TARGETS = 9  # target classes of apgd-t and fab-t, as published
_Answer = tuple[torch.Tensor, torch.Tensor]  # images after an attack, and which of them are wrong
# The package's warnings (zero gradients) go where logging is set up to put them, else nowhere.
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())


def autoattack(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    *,
    norm: str = "Linf",
    version: str = "standard",
    seed: int = 0,
    batch: int = 128,
    cost: Cost | None = None,
    parts: Parts | None = None,
    name: str = "autoattack",
) -> tuple[torch.Tensor, dict[str, int]]:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return float32 images and how many stay right.

    Each attack runs on the images that are right after those before it, `batch` at a time. The
    counts are keyed `clean`, then by attack in order: how many of the `N` are still right.

    Images that no attack fools, and those misclassified from the start, come back unchanged: they
    are not adversarial, so use none of these images to measure transfer.

    version: `standard` for deterministic models, `rand` for randomized ones, whose images count as
    fooled by a single draw, as published. With fewer than 10 classes all wrong ones are targets.
    seed: every batch of every attack starts from it, so a resumed run gives the same images.
    cost: counts the work, that of resumed parts included.
    parts: keeps each finished batch of an attack, under `name`. Processes that are together share
    the batches out.

    Raises UserError where pyautoattack is missing or the model has too few classes, ValueError on
    shapes, ranges or options that make no sense.
    """
    _check(images, labels, eps, norm, version, batch)
    device = device_of(model)
    private = attack_copy(model, device)
    spent = Cost()
    spent.watch(private)
    run = _Run(private, _official(private, eps, norm, version, seed, device), seed, batch, spent)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        found, counts = run(
            images.float().contiguous().to(device), labels.to(device), version, parts, name
        )
    if cost is not None:
        cost.forwards += spent.forwards
        cost.gradients += spent.gradients
    return found.to(images.device), counts


@dataclass(frozen=True)
class _Run:
    """One evaluation. `spent`: the cost so far, counted by hooks and read back from parts."""

    model: nn.Module
    official: Any
    seed: int
    batch: int
    spent: Cost

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        version: str,
        parts: Parts | None,
        name: str,
    ) -> tuple[torch.Tensor, dict[str, int]]:
        right = self._clean(images, labels, version)
        found, counts = images.clone(), {"clean": int(right.sum())}
        for attack in self.official.attacks_to_run:
            chunks = right.nonzero()[:, 0].split(self.batch) if right.any() else ()

            def run(item: tuple[int, torch.Tensor], attack: str = attack) -> _Answer:
                part = f"{name}-{attack}-{item[0]}"
                return self._chunk(attack, images[item[1]], labels[item[1]], parts, part)

            with self.spent.of_all():
                answers = spread(list(enumerate(chunks)), run)
            for rows, answer in zip(chunks, answers, strict=True):
                adv, wrong = (tensor.to(images.device) for tensor in answer)
                found[rows[wrong]], right[rows[wrong]] = adv[wrong], False
            counts[attack] = int(right.sum())
        return found, counts

    @torch.no_grad()
    def _clean(self, images: torch.Tensor, labels: torch.Tensor, version: str) -> torch.Tensor:
        """Which images are right before any attack, `[N]`; fits the targets to the classes."""
        torch.manual_seed(self.seed)
        right = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for rows in torch.arange(len(images)).split(self.batch) if len(images) else ():
            logits = self.model(images[rows])
            right[rows] = logits.argmax(1) == labels[rows]
            _fit_targets(self.official, logits.shape[1], version)
        return same(right.cpu()).to(images.device)

    def _chunk(
        self,
        attack: str,
        images: torch.Tensor,
        labels: torch.Tensor,
        parts: Parts | None,
        part: str,
    ) -> _Answer:
        """Images after one attack, and which of them are wrong; kept as one tensor.

        Its rows are an image's pixels, 1 where it is wrong, and the chunk's forwards and gradients.
        """
        before = Cost(self.spent.forwards, self.spent.gradients)

        def compute() -> torch.Tensor:
            adv, wrong = self._attack(attack, images, labels)
            forwards = self.spent.forwards - before.forwards
            gradients = self.spent.gradients - before.gradients
            notes = torch.tensor([[forwards, gradients]], dtype=torch.float64)
            columns = adv.flatten(1).cpu().double(), wrong[:, None].cpu(), notes.repeat(len(adv), 1)
            return torch.cat(columns, dim=1)

        kept = compute() if parts is None else parts.tensor(part, compute)
        self.spent.forwards = before.forwards + int(kept[0, -2])
        self.spent.gradients = before.gradients + int(kept[0, -1])
        return kept[:, :-3].reshape(images.shape).to(images.dtype), kept[:, -3].bool()

    def _attack(self, attack: str, images: torch.Tensor, labels: torch.Tensor) -> _Answer:
        torch.manual_seed(self.seed)
        adv = _tool(self.official, attack).perturb(images, labels).detach()
        with torch.no_grad():
            return adv, self.model(adv).argmax(1) != labels


def _official(
    model: nn.Module, eps: float, norm: str, version: str, seed: int, device: torch.device
) -> Any:
    """The package's AutoAttack with the settings of the version."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError(
            "AutoAttack needs the package pyautoattack: pip install pyautoattack"
        ) from error
    official = AutoAttack(model, eps=eps, norm=norm, version=version, seed=seed, device=device)
    official.apgd.logger = official.apgd_targeted.logger = _LOG
    return official


def _fit_targets(official: Any, classes: int, version: str) -> None:
    """No more target classes than there are wrong classes."""
    if classes < FEWEST[version]:
        raise UserError(
            f"AutoAttack ({version}) needs at least {FEWEST[version]} classes, the model has "
            f"{classes}; use the margin and square attacks"
        )
    targets = min(TARGETS, classes - 1)
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = targets


def _tool(official: Any, attack: str) -> Any:
    """The package's attack of that name, set as `run_standard_evaluation` sets it."""
    tools = {
        "apgd-ce": official.apgd,
        "apgd-dlr": official.apgd,
        "apgd-t": official.apgd_targeted,
        "fab-t": official.fab,
        "square": official.square,
    }
    tool = tools[attack]
    if attack in ("apgd-ce", "apgd-dlr"):
        tool.loss = attack.removeprefix("apgd-")
    if attack == "fab-t":
        tool.targeted = True
    return tool


def _check(
    images: torch.Tensor, labels: torch.Tensor, eps: float, norm: str, version: str, batch: int
) -> None:
    check_images("autoattack", images, labels, eps)
    check_options("autoattack", batch=batch)
    for key, value, allowed in (
        ("norm", norm, ("Linf", "L2")),
        ("version", version, tuple(FEWEST)),
    ):
        if value not in allowed:
            raise ValueError(f"autoattack: {key} is {value!r}; allowed: {', '.join(allowed)}")
