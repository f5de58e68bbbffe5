"""The tensors of a file, safetensors or a PyTorch state dict, and their names. No pickle is ever
run."""

import re
from collections.abc import Callable, Container, Iterable
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from advprune.core.errors import UserError, first_line
from advprune.core.files import plain_file
from advprune.core.memory import bounded_memory
from advprune.models.spec import INSIDE, ModelSpec

KINDS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex128),
}
LONGEST_NAME = 300  # of a tensor
LARGEST = 1 << 48  # numbers, also of a shape without any: torch computes strides all the same
USUAL = {"state_dict", "net", "model", "model_state_dict", "model_state", "network", "weights"}
OPTIMIZER = re.compile(r"optim(izers?)?([_A-Z\d]|$)")  # in the key of its state
# Put before every name by data-parallel training, by torch.compile, by modules around a network.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
WRAPPERS = ("module", "_orig_mod")  # parts of a name that a wrapper of an inner layer adds


@bounded_memory()
def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file and its metadata; UserError where it cannot be read."""
    plain_file(path, "checkpoint", "run `dvc repro` or check the path")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _sound(tensors, path), dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        if path.suffix == ".safetensors":
            raise UserError(f"{path} is damaged ({error}); make or copy it anew") from error
        raise UserError(
            f"{path} is no .safetensors file ({error}); only those are read here: `advprune prune` "
            "and `quantize` write one from a PyTorch state dict"
        ) from error


@bounded_memory()
def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, or of a PyTorch state dict, which may lie
    inside others. UserError where the file cannot be read, or holds several networks or none."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    plain_file(path, "checkpoint")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: pickle, zip, EOF, runtime
        reason = first_line(error)
        if archive := re.search(r"TorchScript archive|legacy \.tar format", reason):
            reason = f"it is a {archive[0]}, which is not read here; store model.state_dict()"
        if isinstance(error, UnpicklingError):  # torch's own words say how to run what is inside
            other = re.search(r"GLOBAL ([\w.]+)", str(error))
            held = f"it holds {other[1]}" if other else "it is damaged or holds more than tensors"
            reason = f"{held}, and nothing in it is ever run: store model.state_dict() alone"
        raise UserError(f"{path} cannot be read as a plain state dict: {reason}") from error
    found = _state_dicts(content)
    if not found:
        raise UserError(f"{path} holds no state dict of tensors, but {type(content).__name__}")
    if len(found) > 1:
        raise UserError(f"{path} holds several networks ({', '.join(found)}); store one alone")
    (tensors,) = found.values()
    for name, tensor in tensors.items():
        if not (isinstance(name, str) and torch.is_tensor(tensor)):
            kind = type(tensor).__name__
            raise UserError(f"{path} holds no state dict of tensors: {name!r} is {kind}")
    return _sound(tensors, path), {}


def _state_dicts(content: Any) -> dict[str, dict[Any, Any]]:
    """The networks in a file by their keys, such as `ema.state_dict`: dicts at least half of whose
    values are tensors, and that hold none under a `USUAL` key; not the state of an optimizer, nor,
    but under such a key, dicts with less than half as many tensors as the largest."""
    found: dict[str, dict[Any, Any]] = {}
    waiting, seen = [("", content)], set[int]()
    for key, held in waiting:  # which grows
        if not isinstance(held, dict | list | tuple) or id(held) in seen:
            continue
        seen.add(id(held))
        parts = held if isinstance(held, dict) else dict(enumerate(held))
        inside = {str(n): one for n, one in parts.items() if isinstance(one, dict | list | tuple)}
        count = sum(torch.is_tensor(value) and value.ndim > 0 for value in parts.values())
        usual = USUAL & {n for n, one in inside.items() if isinstance(one, dict)}
        if held is parts and count and 2 * count >= len(held) and not usual:
            found[key] = held
        elif not {"state", "param_groups"} <= inside.keys():  # of an optimizer
            named = {n: one for n, one in inside.items() if not OPTIMIZER.search(n)}
            waiting += [(f"{key}.{n}".lstrip("."), one) for n, one in named.items()]
    most = max(map(len, found.values()), default=0)
    large = {key for key, held in found.items() if 2 * len(held) >= most}
    return {key: found[key] for key in found if key in large or USUAL & {*key.split(".")}}


def _sound(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, where each has numbers of its own and a name of acceptable length."""
    for name, tensor in tensors.items():
        if len(name) > LONGEST_NAME:
            raise UserError(f"{path} holds a tensor with a name of {len(name)} characters")
        plain = tensor.dtype in KINDS and tensor.layout == torch.strided and not tensor.is_meta
        plain = plain and prod(max(size, 1) for size in tensor.shape) <= LARGEST
        if not plain or tensor.untyped_storage().nbytes() < tensor.nbytes:  # a stride of 0
            held = f"{tensor.dtype} {list(tensor.shape)}"
            raise UserError(
                f"{path}: {name} ({held}) is no plain tensor; store its numbers in full"
            )
    return tensors


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


def naming(
    spec: ModelSpec | None, names: Iterable[str], wanted: Container[str]
) -> Callable[[str], str]:
    """From a file's names of tensors to those of a network of that spec, which are `wanted`. Of a
    foreign network's, as many prefixes go, for all names, as lets most of them fit."""
    if spec is None or not spec.is_foreign:
        return canonical

    def renamed(inner: bool, count: int, inside: str, name: str) -> str:
        for _ in range(count):
            name = name.partition(".")[2] if name.startswith(PREFIXES) else name
        return inside + (_unwrapped(name) if inner else name)

    ways = [partial(renamed, *way) for way in product((False, True), range(4), ("", f"{INSIDE}."))]
    known = list(names)
    return max(ways, key=lambda way: sum(way(name) in wanted for name in known))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
