"""How a network is named, in settings and in the headers of checkpoints; nothing is imported here.

One of this library's networks; `torchvision/<name>`, `timm/<name>` (`timm/<name>.<tag>`, with the
weights that are meant) or `cifar/<name>`, one of the benchmarks' (models/benchmarks.py); or
`package.module:function`, a function of the user's that makes the network.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

# This library's networks, and how many blocks each of their stages has.
BLOCKS: dict[str, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet20": (3, 3, 3)}
LIBRARY = tuple(BLOCKS)
_OF_COLLECTION = re.compile(r"torchvision/\w+|timm/\w+(\.\w+)?|cifar/\w+", re.ASCII)
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
# Options of torchvision's and timm's functions that would load weights, or read a file.
_LOADING = ("weights", "pretrained", "checkpoint", "cache", "progress")
GIVEN = ("classes", "channels", "num_classes", "in_chans")  # passed by the library itself


def is_library(name: str) -> bool:
    """Whether a name is that of one of this library's networks."""
    return name in LIBRARY


def check_count(key: str, name: str, numbers: tuple[int, ...]) -> None:
    """ValueError where a network of this library is given `stages`, `strides` or `inner`, but not
    as many numbers as it has parts."""
    stages = len(BLOCKS[name])
    count, parts = {
        "stages": (stages + 1, f"a stem and {stages} stages"),
        "strides": (stages, f"{stages} stages"),
        "inner": (sum(BLOCKS[name]), f"{sum(BLOCKS[name])} blocks"),
    }[key]
    if numbers and len(numbers) != count:
        raise ValueError(f"{key}: {name} has {parts}, not {len(numbers)} in all")


def is_factory(name: str) -> bool:
    """Whether a name is that of a function, which would have to be imported and called."""
    return ":" in name


def collection_of(name: str) -> tuple[str, str]:
    """The package that a network is of and its name there; of others an empty text and the name."""
    collection, separator, inside = name.partition("/")
    return (collection, inside) if separator else ("", name)


def _architecture(name: str) -> str:
    if name in LIBRARY or _OF_COLLECTION.fullmatch(name):
        return name
    known = ", ".join((*LIBRARY, "torchvision/<name>", "timm/<name>", "cifar/<name>"))
    raise ValueError(f"there is no such architecture; known: {known}")


def _factory(name: str) -> str:
    if not _FACTORY.fullmatch(name):
        raise ValueError("write package.module:function, such as my_model:network")
    return name


def _network(name: str) -> str:
    return _factory(name) if is_factory(name) else _architecture(name)


def _harmless(options: dict[str, "Option"]) -> dict[str, "Option"]:
    for name in options:
        if not name.isidentifier() or name in GIVEN or name.startswith(_LOADING):
            raise ValueError(f"{name!r} cannot be given as an option of a network")
    return options


Plain = bool | int | float | str | None
Option = Plain | list[Plain]
Architecture = Annotated[str, AfterValidator(_architecture)]
Factory = Annotated[str, AfterValidator(_factory)]
Network = Annotated[str, AfterValidator(_network)]
Options = Annotated[dict[str, Option], AfterValidator(_harmless), Field(max_length=64)]
