"""AutoAttack as published, by its authors' code in the package pyautoattack.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks (ICML 2020). `standard`: APGD on the cross-entropy, targeted APGD on the
difference of logits ratio, targeted FAB (100 iterations each, up to 9 target classes) and Square
(5,000 queries). `rand`, for randomized models: APGD on both losses, with gradients averaged over 20
draws. Every setting is the package's own; only the loop over attacks and batches is ours, as in
`AutoAttack.run_standard_evaluation`, without its checks of the kind of defence.
"""

import logging
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.engine import by_batch
from advprune.attacks.opening import Opened, opened
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.core.errors import UserError

FEWEST = {"standard": 4, "rand": 3}  # classes that the (targeted) difference of logits ratio needs
TARGETS = 9  # target classes of apgd-t and fab-t, as published
# The package's warnings (zero gradients) go where logging is set up to put them, else nowhere.
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())


class AutoAttackSettings(Attack):
    """Settings of `method: autoattack`.

    version: standard for deterministic models, rand for randomized ones, whose images count as
    fooled by a single draw, as published; auto takes what fits. images: how many test images, the
    first ones; null takes all.
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
def autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, s: AutoAttackSettings, how: Context
) -> Tensor:
    """float32 images; `how.breakdown` gets how many are right at first (`clean`) and after each
    attack, in order. Each attack, and each of its batches, starts from the seed and works on the
    images that are right after those before it. Images that no attack fools, and those
    misclassified from the start, come back unchanged: use none of these to measure transfer.
    UserError where pyautoattack is missing or the model has too few classes."""
    with opened(model, images, labels, s, how) as at:
        shown, labels = images.float().contiguous().to(at.device), labels.to(at.device)
        found, seed = shown.clone(), how.seed
        torch.manual_seed(seed)

        @torch.no_grad()
        def answers(points: Tensor) -> Tensor:
            return torch.cat([at.quick(part) for part in points.split(how.batch)])

        version = s.version
        if version == "auto":
            version = "rand" if at.randomized else "standard"
        logits = answers(shown)
        official, tools = _official(at, version, logits.shape[1])
        right = logits.argmax(1) == labels
        how.breakdown["clean"] = int(right.sum())

        def piece(tool: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
            """The images of a batch after one attack, and which of them are wrong; on the CPU."""
            torch.manual_seed(seed)
            adv = tool.perturb(shown[rows], labels[rows]).detach()
            return adv.cpu(), (answers(adv).argmax(1) != labels[rows]).cpu()

        for name in official.attacks_to_run:
            official.apgd.loss = name.removeprefix("apgd-")  # of two of the attacks
            parts = right.nonzero()[:, 0].split(how.batch) if right.any() else ()
            answered = by_batch(at.quick, parts, partial(piece, tools[name]), how.cost)
            for rows, (adv, wrong) in zip(parts, answered, strict=True):
                fooled = rows[wrong.to(rows.device)]
                found[fooled], right[fooled] = adv[wrong].to(found), False
            how.breakdown[name] = int(right.sum())
    return found.to(images.device)


def _official(
    at: Opened[AutoAttackSettings], version: str, classes: int
) -> tuple[Any, dict[str, Any]]:
    """The package's AutoAttack and its attacks by name, set as `run_standard_evaluation` sets them,
    with no more target classes than wrong ones."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError(
            "AutoAttack needs the package pyautoattack: pip install pyautoattack"
        ) from error
    if classes < FEWEST[version]:
        raise UserError(
            f"AutoAttack ({version}) needs at least {FEWEST[version]} classes, the model "
            f"has {classes}; use the margin and square attacks"
        )
    s, known = at.setting, {"version": version, "device": at.device, "seed": at.how.seed}
    it = AutoAttack(at.quick, eps=s.eps, norm=s.norm, **known)
    it.apgd.logger = it.apgd_targeted.logger = _LOG
    it.fab.targeted = True
    it.apgd_targeted.n_target_classes = it.fab.n_target_classes = min(TARGETS, classes - 1)
    plain = {"apgd-ce": it.apgd, "apgd-dlr": it.apgd}
    return it, plain | {"apgd-t": it.apgd_targeted, "fab-t": it.fab, "square": it.square}
