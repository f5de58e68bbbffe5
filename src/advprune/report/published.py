"""Published results of others, from published.yaml."""

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML


@dataclass(frozen=True)
class Figure:
    """One published figure, in the source's own digits, and what it was found on.

    key: which of ours is set beside it: a setting, a model's family, an attack on SAP, how weights
    are stored, or a family at a sparsity. unread: known from others, not read at its source.
    """

    key: str
    setting: str
    figure: str
    unread: bool


@dataclass(frozen=True)
class System:
    """A published system. differs: their regime, and how it differs from ours. families: ours."""

    title: str
    source: str
    differs: str
    families: tuple[str, ...]
    figures: tuple[Figure, ...]


def _systems() -> tuple[System, ...]:
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    found = []
    for one in YAML(typ="safe", pure=True).load(text):
        rows = [Figure(key, on, figure, bool(more)) for key, on, figure, *more in one["figures"]]
        for name, rates in one.get("sparse", {}).items():
            for percent, clean, robust in zip((90, 95, 99), rates[::2], rates[1::2], strict=True):
                figure = f"clean {clean} %, robust {robust} %"
                key, on = f"{name} {percent / 100}", f"{name}, {percent} %"
                rows.append(Figure(key, on, figure, unread=False))
        about = one["title"], one["source"], one["differs"], tuple(one["families"])
        found.append(System(*about, tuple(rows)))
    return tuple(found)


SYSTEMS = _systems()
