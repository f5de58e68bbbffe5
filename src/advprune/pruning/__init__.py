"""Families: one file each, found in this folder.

A family is a function `(model, setting, data) -> Pruned`, registered under its key in
params.yaml with `@family(key, Settings)`. It never changes the model it was given.
"""

import pkgutil
from collections import defaultdict
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from advprune.core.params import Params
from advprune.pruning.family import Data, Pruned, chosen, families, prune, setting_of
from advprune.pruning.hydra import check_equal_training
from advprune.pruning.tickets import check_equal_tickets

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
    """UserError where families that are compared are not trained alike; `named`: typed settings of
    one parent by their place in params.yaml."""
    check_equal_training(named)
    check_equal_tickets(named)


__all__ = ["Data", "Pruned", "check_controls", "check_settings", "chosen", "families"]
__all__ += ["prune", "setting_of"]
