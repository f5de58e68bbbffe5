"""Names of tensors: from those of a file to those of the network that it is read into."""

from collections.abc import Callable, Container, Iterable
from functools import partial

from advprune.models.outside import INSIDE
from advprune.models.spec import ModelSpec

Rename = Callable[[str], str]
# Put before every name by data-parallel training, by torch.compile, by modules around a network.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
WRAPPERS = ("module", "_orig_mod")  # parts of a name that a wrapper of an inner layer adds


def bare(name: str) -> str:
    """A tensor's name without what wrappers of the network and of its layers add."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return _unwrapped(name)


def canonical(name: str) -> str:
    """A tensor's name in this library's networks: torchvision's names go, too."""
    name = bare(name)
    name = "linear." + name.removeprefix("fc.") if name.startswith("fc.") else name
    return name.replace(".downsample.", ".shortcut.")


def naming(spec: ModelSpec | None, names: Iterable[str], wanted: Container[str]) -> Rename:
    """From a file's names of tensors to those of a network of that spec, which are `wanted`. Of a
    foreign network's, as many prefixes go, for all names, as lets most of them fit."""
    if spec is None or not spec.outside:
        return canonical

    def renamed(count: int, inside: str, inner: bool, name: str) -> str:
        for _ in range(count):
            name = name.partition(".")[2] if name.startswith(PREFIXES) else name
        return inside + (_unwrapped(name) if inner else name)

    ways = [
        partial(renamed, n, inside, inner)
        for inner in (False, True)
        for n in range(4)
        for inside in ("", f"{INSIDE}.")
    ]
    known = list(names)
    return max(ways, key=lambda way: sum(way(name) in wanted for name in known))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
