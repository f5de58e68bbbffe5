"""Families: one file each, found in this folder.

A family is a function `(model, setting, data) -> Pruned`, registered under its key in
params.yaml with `@family(key, Setting)`. It never changes the model it was given.
"""

import pkgutil
from importlib import import_module
from typing import Any

from advprune.core.params import Params
from advprune.pruning.family import (
    Data,
    Pruned,
    chosen,
    families,
    prune,
    setting_of,
)
from advprune.pruning.hydra import check_equal_epochs

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def check_settings(params: Params) -> None:
    """Check every setting of a family in params.yaml before anything is computed."""
    places = {key: f"prune.{key}" for key in params.prune}
    typed = {key: setting_of(*chosen(key, params.prune[key]), place=places[key]) for key in places}
    parents: dict[str, dict[str, Any]] = {}
    for entry in params.models.values():
        if entry.do == "prune":
            parents.setdefault(entry.of, {})[places[entry.key]] = typed[entry.key]
    for named in parents.values():
        check_equal_epochs(named)


__all__ = [
    "Data",
    "Pruned",
    "check_equal_epochs",
    "check_settings",
    "chosen",
    "families",
    "prune",
    "setting_of",
]
