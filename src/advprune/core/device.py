"""The device, and reproducible computation on it."""

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError

WORKERS = "ADVPRUNE_WORKERS"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def setup(threads: int | None = None) -> torch.device:
    """The GPU if there is one, with deterministic algorithms where torch has them; else the CPU,
    with this number of threads (None: torch's own).

    The CPU's are deterministic as they are, and asking for it costs a second of imports.
    """
    # Keep freed memory for the next tensor; else a feature map of some megabytes is given back and
    # fetched anew, page by page, in every layer.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that is allowed
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    if threads:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may differ
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling takes a kernel for each new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        return torch.device("cuda")
    return torch.device("cpu")


def workers() -> int:
    """How many processes may work at once: one per core, or as the environment variable `WORKERS`
    says; UserError where that is no such number."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    given = os.environ.get(WORKERS) or str(cores)
    if not given.isdecimal() or not 0 < len(given.lstrip("0")) < 6:
        raise UserError(f"{WORKERS} is {given!r}; give a number of processes, 1 or more")
    return int(given)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, a CPU computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, a GPU does not round the inputs of float32 convolutions and products to 19 bits."""
    kinds: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    try:
        yield
    finally:
        for kind, allowed in zip(kinds, before, strict=True):
            kind.allow_tf32 = allowed


def salted(seed: int, *words: str) -> int:
    """A seed of its own for each use of the setting `seed`, named by words: noise drawn with the
    seed of the initialization would be correlated with the weights."""
    digest = hashlib.sha256("/".join((str(seed), *words)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def device_of(model: nn.Module) -> torch.device:
    """Where a model lives (the CPU for one without parameters)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
