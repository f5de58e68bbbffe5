"""Families: one file each, found in this folder.

A family is a function `(model, setting, data) -> Pruned`, registered under its key in
params.yaml with `@family(key, Settings)`. It never changes the model it was given.
"""

import pkgutil
from collections import defaultdict
from collections.abc import Mapping
from importlib import import_module
from itertools import permutations
from typing import Any

from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.pruning.family import Data, Pruned, chosen, families, prune, setting_of
from advprune.pruning.hydra import Hydra, Magnitude
from advprune.pruning.tickets import Ticket

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def check_settings(params: Params) -> None:
    """Check every setting of a family in params.yaml before anything is computed."""
    typed = {k: setting_of(*chosen(k, v), place=f"prune.{k}") for k, v in params.prune.items()}
    parents: dict[str, dict[str, Any]] = defaultdict(dict)
    for entry in params.models.values():
        if entry.do == "prune":
            parents[entry.of][entry.by] = typed[entry.key]
    for named in parents.values():
        check_controls(named)


def check_controls(named: Mapping[str, Any]) -> None:
    """UserError where a family and its control are not trained alike: HYDRA and LWM of the same
    sparsity, and all tickets; `named`: typed settings of one parent by place in params.yaml."""
    for (place, one), (other, control) in permutations(named.items(), 2):
        masks = isinstance(one, Hydra) and type(control) is Magnitude
        tickets = isinstance(one, Ticket) and isinstance(control, Ticket)
        if not (tickets or (masks and one.sparsity == control.sparsity)):
            continue
        wanted = one.shared()
        for key, value in control.shared().items():
            if value != wanted.get(key, value):
                raise UserError(
                    f"{other}.{key}: {value} here, and {wanted[key]} in {place}, its phases "
                    "together; each other's controls are trained alike"
                )


__all__ = ["Data", "Pruned", "check_controls", "check_settings", "chosen", "families"]
__all__ += ["prune", "setting_of"]
