"""AutoAttack as published, by its authors' code in the package pyautoattack, made resumable.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks (ICML 2020). `standard`: APGD on the cross-entropy, targeted APGD on the
difference of logits ratio, targeted FAB (100 iterations each, up to 9 target classes) and Square
(5,000 queries). `rand`, for randomized models: APGD on both losses, with gradients averaged over 20
draws. Every setting is the package's own; only the loop over attacks and batches is ours, as in
`AutoAttack.run_standard_evaluation`, without its checks of the kind of defence.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.checks import check_choice
from advprune.attacks.engine import by_batch
from advprune.attacks.opening import Options, opened, options
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.core.errors import UserError
from advprune.core.resume import Noted, Parts
from advprune.models.stochastic import is_randomized

FEWEST = {"standard": 4, "rand": 3}  # classes that the (targeted) difference of logits ratio needs
TARGETS = 9  # target classes of apgd-t and fab-t, as published
# The package's warnings (zero gradients) go where logging is set up to put them, else nowhere.
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class AutoAttackOptions(Options):
    """How AutoAttack is run; more in `Options`.

    version: `standard` for deterministic models, `rand` for randomized ones, whose images count as
    fooled by a single draw, as published. seed: every batch of every attack starts from it. cost:
    counts the work, that of resumed parts included. parts: keeps each finished batch.
    """

    version: str = "standard"
    parts: Parts | None = None


def autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, **changes: Any
) -> tuple[Tensor, dict[str, int]]:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return float32 images and how many stay right.

    Each attack runs on the images that are right after those before it, `batch` at a time; counts
    are keyed `clean`, then by attack in order. Images that no attack fools, and those misclassified
    from the start, come back unchanged: use none of these to measure transfer. changes: fields of
    AutoAttackOptions. UserError where pyautoattack is missing or the model has too few classes,
    ValueError on shapes, ranges or options that make no sense.
    """
    how = AutoAttackOptions(**changes)
    check_choice("autoattack", "version", how.version, tuple(FEWEST))
    with opened("autoattack", model, (images, labels), eps, how) as at:
        shown, labels = images.float().contiguous().to(at.device), labels.to(at.device)
        found, cost = shown.clone(), at.cost
        torch.manual_seed(how.seed)
        with torch.no_grad():
            logits = torch.cat([at.quick(part) for part in shown.split(how.batch)])
        official, tools = _official(at.quick, eps, how, at.device, logits.shape[1])
        right = logits.argmax(1) == labels
        # A suite may have AutoAttack twice, at two budgets.
        kept = f"autoattack-{how.version}-{how.norm}-{eps:g}-{how.seed}-{len(images)}"
        counts = {"clean": int(right.sum())}

        def piece(item: tuple[str, Tensor]) -> tuple[Tensor, Tensor]:
            """Images of a chunk after one attack, and which of them are wrong; on the CPU."""
            (name, rows), before = item, vars(cost).copy()

            def compute() -> Noted:
                torch.manual_seed(how.seed)
                kind = name.partition(" ")[0]
                official.apgd.loss = kind.removeprefix("apgd-")  # for two of the attacks
                adv = tools[kind].perturb(shown[rows], labels[rows]).detach()
                with torch.no_grad():
                    wrong = at.quick(adv).argmax(1) != labels[rows]
                spent = {side: count - before[side] for side, count in vars(cost).items()}
                return adv.cpu(), {"wrong": wrong.tolist()} | spent

            part = f"{kept}-{name.replace(' ', '-')}"
            adv, facts = compute() if how.parts is None else how.parts.tensor(part, compute)
            for side, count in before.items():  # that of a part that was read back, too
                setattr(cost, side, count + facts[side])
            return adv, torch.tensor(facts["wrong"])

        for name in official.attacks_to_run:
            chunks = right.nonzero()[:, 0].split(how.batch) if right.any() else ()
            items = [(f"{name} {number}", rows) for number, rows in enumerate(chunks)]
            answers = by_batch(at.quick, items, piece, cost)
            for rows, (adv, wrong) in zip(chunks, answers, strict=True):
                fooled = rows[wrong.to(rows.device)]
                found[fooled], right[fooled] = adv[wrong].to(found), False
            counts[name] = int(right.sum())
    return found.to(images.device), counts


class AutoAttackSettings(Attack):
    """Settings of `method: autoattack`.

    version: standard for deterministic models, rand for randomized ones; auto takes what fits.
    images: how many test images, the first ones; null takes all.
    """

    method: Literal["autoattack"]
    version: Literal["auto", "standard", "rand"] = "auto"
    images: int | None = Field(default=None, ge=1)

    @property
    def steps(self) -> int:
        """What records call its steps: those of each of its gradient attacks."""
        return 100

    def runs(self, classes: int) -> int:
        """APGD once, its targeted form and FAB for each target class."""
        return 1 + 2 * min(TARGETS, classes - 1)


@method("autoattack", AutoAttackSettings, searches=("square",))
def _autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, s: AutoAttackSettings, how: Context
) -> Tensor:
    fitting = "rand" if is_randomized(model) else "standard"
    version = fitting if s.version == "auto" else s.version
    chosen = vars(options(AutoAttackOptions, s, how, version=version))
    found, counts = autoattack(model, images, labels, s.eps, **chosen)
    how.breakdown.update(counts)
    return found


def _official(
    model: nn.Module, eps: float, how: AutoAttackOptions, device: torch.device, classes: int
) -> tuple[Any, dict[str, Any]]:
    """The package's AutoAttack and its attacks by name, set as `run_standard_evaluation` sets them,
    with no more target classes than wrong ones."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError(
            "AutoAttack needs the package pyautoattack: pip install pyautoattack"
        ) from error
    if classes < FEWEST[how.version]:
        raise UserError(
            f"AutoAttack ({how.version}) needs at least {FEWEST[how.version]} classes, the model "
            f"has {classes}; use the margin and square attacks"
        )
    chosen = {"norm": how.norm, "version": how.version, "seed": how.seed}
    it = AutoAttack(model, eps=eps, device=device, **chosen)
    it.apgd.logger = it.apgd_targeted.logger = _LOG
    it.fab.targeted = True
    it.apgd_targeted.n_target_classes = it.fab.n_target_classes = min(TARGETS, classes - 1)
    plain = {"apgd-ce": it.apgd, "apgd-dlr": it.apgd}
    return it, plain | {"apgd-t": it.apgd_targeted, "fab-t": it.fab, "square": it.square}
