"""Attacks: pure functions of a model, images and labels; one file each, found by looking here.

Those that a suite may name are registered under their `method` in params.yaml with
`@method(name, Settings)` (registry.py).
"""

import pkgutil
from importlib import import_module

from advprune.attacks.bit_search import bitflip
from advprune.attacks.pgd import pgd
from advprune.attacks.pixels import to_pixels
from advprune.attacks.registry import attack

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["attack", "bitflip", "pgd", "to_pixels"]
