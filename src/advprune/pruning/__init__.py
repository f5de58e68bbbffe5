"""Families: one file each, found in this folder.

A family is a function `(model, setting, data, generator) -> Pruned`, registered under its key in
params.yaml with `@family(key, Setting)`. It never changes the model it was given.
"""

import pkgutil
from importlib import import_module

from advprune.pruning.family import (
    Data,
    Pruned,
    check_settings,
    chosen,
    families,
    prune,
    setting_of,
)

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Data", "Pruned", "check_settings", "chosen", "families", "prune", "setting_of"]
