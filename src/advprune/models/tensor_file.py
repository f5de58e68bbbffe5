"""The tensors of a file, safetensors or a state dict, also under keys such as `state_dict`.

No pickle is ever run.
"""

import math
import re
from collections.abc import Callable, Container, Iterable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from advprune.core.errors import UserError
from advprune.core.files import plain_file
from advprune.core.memory import bounded_memory
from advprune.models.spec import INSIDE, ModelSpec

WRAPPINGS = ("state_dict", "net", "model", "model_state_dict", "model_state", "network", "weights")
AVERAGED = ("ema", "swa", "average")  # in the key of averaged weights beside raw ones
KINDS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex128),
    *(torch.qint8, torch.quint8, torch.qint32),  # refused as no plain tensors
}
MOST_WRAPPINGS = 8  # one inside the other
LONGEST_NAME = 300  # of a tensor
LARGEST = 1 << 48  # numbers, also of a shape without any: torch computes strides all the same
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
        raise UserError(
            f"{path} is damaged or no safetensors file ({error}); delete it and make it anew"
        ) from error


@bounded_memory()
def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file or of a PyTorch state dict, and the header's metadata.

    A state dict is read with `weights_only=True`, so that no code in it is run, and taken out of
    the common wrappings. Of several networks in a file the first is read, and the metadata's entry
    `several` says which there are: `header_spec` refuses them. Raises UserError where the file
    cannot be read or holds anything else.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    plain_file(path, "checkpoint")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: pickle, zip, EOF, runtime
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if found := re.search(r"TorchScript archive|legacy \.tar format", reason):
            reason = f"it is a {found[0]}, which is not read here; store model.state_dict()"
        if isinstance(error, UnpicklingError):  # torch's own words say how to run what is inside
            reason = "it is damaged or holds more than tensors, and nothing in it is ever run"
            if kind := re.search(r"GLOBAL ([\w.]+)", str(error)):
                reason = f"it holds {kind[1]}, and nothing in it is ever run: store "
                reason += "model.state_dict() alone"
        raise UserError(f"{path} cannot be read as a plain state dict: {reason}") from error
    several: list[str] = []
    for _ in range(MOST_WRAPPINGS):
        if not isinstance(content, dict) or not (inside := _wrapped(content)):
            break
        several = several or (inside if len(inside) > 1 else [])
        content = content[inside[0]]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no state dict of tensors, but {type(content).__name__}")
    for name, tensor in content.items():
        if not torch.is_tensor(tensor):
            other = type(tensor).__name__
            raise UserError(f"{path} holds no state dict of tensors: {name!r} is {other}")
    if not content or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} holds no state dict: its tensors have no names, or there are none")
    return _sound(content, path), {"several": ", ".join(several)} if several else {}


def _wrapped(content: dict[Any, Any]) -> list[str]:
    """Under which keys a file holds state dicts: the common ones first, then those of averages,
    then others of about as many tensors. None where tensors lie beside them."""
    if any(torch.is_tensor(value) and value.ndim for value in content.values()):
        return [key for key in WRAPPINGS if isinstance(content.get(key), dict)]
    inside = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, dict)}
    usual = [key for key in WRAPPINGS if key in inside]
    averaged = [k for k in inside if k not in usual and any(word in k.lower() for word in AVERAGED)]
    counts = {key: sum(map(torch.is_tensor, inside[key].values())) for key in inside}
    most = max(counts.values(), default=0)
    others = [k for k, n in counts.items() if n > 1 and 2 * n >= most]
    return list(dict.fromkeys([*usual, *averaged, *others]))


def _sound(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, where each has numbers of its own and a name of acceptable length."""
    for name, tensor in tensors.items():
        if len(name) > LONGEST_NAME:
            raise UserError(f"{path} holds a tensor with a name of {len(name)} characters")
        if tensor.dtype not in KINDS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name} is {kind}, which is not read here")
        plain = tensor.layout == torch.strided and not tensor.is_quantized
        if math.prod(max(size, 1) for size in tensor.shape) > LARGEST:
            raise UserError(f"{path}: {name} has the shape {list(tensor.shape)}, which none has")
        if tensor.is_meta:
            raise UserError(f"{path}: {name} is a meta tensor, which holds no numbers")
        if plain and 0 in tensor.stride() and tensor.numel() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} repeats one number by a stride of 0; store it in full")
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
