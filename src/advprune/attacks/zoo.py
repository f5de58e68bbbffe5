"""Any attack of torchattacks by its class name, without its side effects: on a private copy of the
model, inside a forked random state that is seeded for the call."""

import inspect
from math import isfinite
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from advprune.attacks.engine import by_batch
from advprune.attacks.opening import opened
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.core.errors import UserError
from advprune.core.settings import Name

# Those that follow the model's gradient and nothing else.
FOLLOW_GRADIENT = frozenset(
    (
        *("FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "PGDL2", "PGDRS", "PGDRSL2"),
        *("EOTPGD", "TPGD", "UPGD", "MIFGSM", "NIFGSM", "SINIFGSM", "DIFGSM", "TIFGSM"),
        *("VMIFGSM", "VNIFGSM", "PIFGSM", "PIFGSMPP", "APGD", "APGDT", "FAB", "CW"),
        *("DeepFool", "SparseFool", "JSMA", "EADL1", "EADEN", "Jitter"),
    )
)


def attack_class(name: str) -> Any:
    """The torchattacks class of that name; UserError where there is none."""
    try:
        import torchattacks
    except ImportError as error:
        raise UserError(
            "attack.extra needs the package torchattacks; pip install 'advprune[torchattacks]'"
        ) from error
    found = getattr(torchattacks, name, None)
    if not (inspect.isclass(found) and issubclass(found, torchattacks.attack.Attack)):
        raise UserError(f"attack.extra: torchattacks has no attack {name!r} (names as PGD, MIFGSM)")
    return found


def check_attack(name: str, arguments: dict[str, Any]) -> None:
    """UserError for an attack that torchattacks lacks, or an argument that the attack lacks."""
    known = inspect.signature(attack_class(name)).parameters
    takes = [key for key in known if key != "model"]
    if unknown := sorted(set(arguments) - set(takes)):
        raise UserError(
            f"attack.extra: {name} takes no {unknown[0]!r}; it takes {', '.join(takes)}"
        )
    for key, value in arguments.items():
        default = known[key].default
        number = isinstance(default, int | float) and not isinstance(default, bool)
        given = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (given and isfinite(value)):
            raise UserError(f"attack.extra: {name}: {key} is a number (got {value!r})")


class ZooSettings(Attack):
    """Settings of an entry of `attack.extra`: the class, and its own arguments, budget included.

    Its number of steps is not known here; records have 0.
    """

    method: Literal["torchattacks"]
    name: Name
    arguments: dict[str, Any] = {}

    @property
    def recorded(self) -> str:
        """The method in records: the class, whatever the label is."""
        return f"{self.method}.{self.name}"

    @model_validator(mode="before")
    @classmethod
    def _eps_of_the_class(cls, values: Any) -> Any:
        """The budget that the class has of its own, where none is given and it has one."""
        if isinstance(values, dict) and "eps" not in values.get("arguments", {}):
            known = inspect.signature(attack_class(values["name"])).parameters
            if "eps" in known:
                return values | {"eps": known["eps"].default}
        return values


@method("torchattacks", ZooSettings, gradients=FOLLOW_GRADIENT)
def zoo(model: nn.Module, images: Tensor, labels: Tensor, s: ZooSettings, how: Context) -> Tensor:
    """Run a class of torchattacks; `seed + i` seeds the i-th batch.

    UserError for an unknown attack or arguments that it does not take.
    """
    check_attack(s.name, s.arguments)
    kind = attack_class(s.name)

    def run(item: tuple[int, Tensor]) -> Tensor:
        index, rows = item
        torch.manual_seed(how.seed + index)
        takes_seed = "seed" in inspect.signature(kind).parameters
        seeded = {"seed": how.seed + index} if takes_seed else {}
        attack = kind(at.quick, **seeded | s.arguments)
        with torch.enable_grad():
            found = attack(images[rows].to(at.device), labels[rows].to(at.device))
        return found.detach().clamp(0, 1).to(images.device)

    with opened(model, images, labels, s, how) as at:
        batches = list(enumerate(torch.arange(len(images)).split(how.batch)))
        results = by_batch(at.quick, batches, run, how.cost)
    return torch.cat(results) if results else images.clone()
