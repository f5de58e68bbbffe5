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
    return tuple(
        System(
            one["title"],
            one["source"],
            one["differs"],
            tuple(one["families"]),
            tuple(Figure(key, on, found, bool(more)) for key, on, found, *more in one["figures"]),
        )
        for one in YAML(typ="safe", pure=True).load(text)
    )


SYSTEMS = _systems()
