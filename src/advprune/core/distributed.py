"""Several processes on one stage, started by torchrun; without it, nothing here has an effect.

Attacks and scores divide their batches (`spread`), and all processes get all results. Training is
torch's DistributedDataParallel, on a share of each batch. All else each process computes for
itself; only the first one reads and writes files.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from advprune.core.errors import UserError
from advprune.core.progress import silence

WAIT = timedelta(days=7)  # for the first process, which writes; torchrun ends all when one fails
Piece = TypeVar("Piece")
Result = TypeVar("Result")
_alone = False  # while this process works on its share of the pieces


def start() -> None:
    """Join the others, where torchrun has started several; each takes a GPU, if there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    backend, gpus = "gloo", torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
        backend = "cpu:gloo,cuda:nccl" if int(os.environ["LOCAL_WORLD_SIZE"]) <= gpus else "gloo"
    dist.init_process_group(backend, timeout=WAIT)
    if not is_main():
        silence()


def end() -> None:
    """Leave the group once all processes are done."""
    if processes() > 1:
        _gather(None)
        dist.destroy_process_group()


def processes() -> int:
    """How many processes work together here; 1 without torchrun and inside a piece of `spread`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def is_main() -> bool:
    """Whether this process reads and writes the files."""
    return rank() == 0


def spread(pieces: Sequence[Piece], do: Callable[[Piece], Result]) -> list[Result]:
    """`do` of every piece, in order: to the last bit what one process computes, on the CPU."""
    global _alone
    if (size := processes()) == 1:
        return [do(piece) for piece in pieces]
    _alone = True
    try:
        mine = [do(piece) for piece in pieces[dist.get_rank() :: size]]
    finally:
        _alone = False
    shares = _gather(mine)
    return [shares[index % size][index // size] for index in range(len(pieces))]


def from_main(read: Callable[[], Result]) -> Result:
    """What `read` gives in the first process, for all: processes need no folder in common."""
    return _gather(read() if is_main() else None)[0]


def share(count: int) -> slice:
    """Which images of a batch this process trains on: all, where there are not two for each."""
    return slice(rank(), None, processes()) if processes() <= count // 2 else slice(None)


def parallel(model: nn.Module) -> nn.Module:
    """The model as gradients are taken of it: averaged over the processes by torch."""
    return model if processes() == 1 else DistributedDataParallel(model, broadcast_buffers=False)


def total(*numbers: float) -> tuple[float, ...]:
    """Sums over the processes."""
    return tuple(map(sum, zip(*_gather(numbers), strict=True)))


def agree(model: nn.Module) -> None:
    """Take over the first process's buffers, such as batch-norm's statistics."""
    for buffer in model.buffers() if processes() > 1 else ():
        dist.broadcast(buffer, 0)


def _gather(value: Any) -> list[Any]:
    """What each process gives; UserError where one is gone."""
    if processes() == 1:
        return [value]
    found = [None] * processes()
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        lost = "torchrun: a process was lost, perhaps killed for lack of memory; see its own report"
        raise UserError(lost) from error
    return found
