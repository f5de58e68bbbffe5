"""Several processes at one stage, started by torchrun, on one machine or on many.

All of them run the same script. Wherever they are at the same place of it, they are *together*:
batches are dealt out (`spread`) and every process gets all results, so that all go on with the same
numbers and take the same turns. Inside `alone` a process is by itself, as if there were no other:
there it works on what was dealt to it. What decides how the program goes on must therefore be the
same everywhere: computed from what was gathered, or taken from the first process (`same`).

Without torchrun, or with one process, nothing here does anything.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from advprune.core.errors import UserError
from advprune.core.progress import silence

SIZE = "WORLD_SIZE"  # environment variable of torchrun: how many processes
WAIT = timedelta(days=7)  # for a process that works alone; torchrun ends all when one has failed

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass
class _Team:
    """The processes, this one's number among them, and a store of counters that all can reach."""

    rank: int
    size: int
    store: dist.Store
    rounds: int = 0


_team: _Team | None = None
_apart = 0  # how many blocks of `alone` this process is in


def start() -> None:
    """Join the others, where torchrun has started more than one process.

    Each takes a GPU of its machine, if there is one; numbers on the CPU are exchanged by gloo. All
    but the first show no progress.
    """
    global _team
    if _team is not None or int(os.environ.get(SIZE, "1")) < 2:
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=WAIT))
    dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=WAIT)
    _team = _Team(rank, size, store)
    if rank:
        silence()


def _backend() -> str:
    """How to exchange: GPUs by NCCL where each process has one of its own."""
    gpus = torch.cuda.device_count()
    if not gpus:
        return "gloo"
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    return "cpu:gloo,cuda:nccl" if int(os.environ["LOCAL_WORLD_SIZE"]) <= gpus else "gloo"


def end() -> None:
    """Part, when all processes have come so far."""
    global _team
    if _team is not None:
        barrier()
        dist.destroy_process_group()
        _team = None


def first_to_fail() -> bool:
    """Whether no other process has asked this before: it is the one that tells of its error.

    The others fail as well, of the same cause or because they have lost this one.
    """
    return _team is None or _team.store.add("failed", 1) == 1


def processes() -> int:
    """How many processes are together here: 1 inside `alone`, or without torchrun."""
    return 1 if _team is None or _apart else _team.size


def rank() -> int:
    """This process's number among those that are together, from 0."""
    return 0 if _team is None or _apart else _team.rank


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


@contextmanager
def alone(when: bool = True) -> Iterator[None]:
    """Inside, this process is by itself: nothing is dealt out, gathered or waited for."""
    global _apart
    _apart += when
    try:
        yield
    finally:
        _apart -= when


def spread(pieces: Sequence[Piece], do: Callable[[Piece], Result]) -> list[Result]:
    """`do` of every piece, in order. Each process does every so-manieth; all get all results.

    The pieces must not depend on each other; results lie on the CPU. A piece is computed as it
    would be by one process, so the results are the same to the last bit.
    """
    size, start = processes(), rank()
    with alone():
        mine = [do(piece) for piece in pieces[start::size]]
    shares = gather(mine)
    return [shares[index % size][index // size] for index in range(len(pieces))]


def enough(pieces: int) -> bool:
    """Whether there are several processes, and a piece at least for each."""
    return 1 < processes() <= pieces


def turns(count: int) -> Iterator[int]:
    """Numbers below `count`, in order; each goes to one process, to whoever asks first."""
    if processes() == 1:
        yield from range(count)
        return
    assert _team is not None
    _team.rounds += 1
    key = f"turns {_team.rounds}"
    while (number := _team.store.add(key, 1) - 1) < count:
        yield number


def share(count: int) -> tuple[slice, float]:
    """Which of `count` images this process works on, and what part of the whole they stand for.

    Neighbours, in numbers that differ by at most one. Where there are fewer images than processes,
    each works on all of them, for its part of the result.
    """
    size, number = processes(), rank()
    if count < size:
        return slice(0, count), 1 / size
    first, last = number * count // size, (number + 1) * count // size
    return slice(first, last), (last - first) / count


def gather(value: Result) -> list[Result]:
    """What each process gives, by its number."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    _exchange(lambda: dist.all_gather_object(found, value))
    return found


def same(value: Result, source: int = 0) -> Result:
    """What the process `source` gives, for all."""
    if processes() == 1:
        return value
    held = [value]
    _exchange(lambda: dist.broadcast_object_list(held, src=source))
    return held[0]


def first_found(here: bool, read: Callable[[], Result | None]) -> Result | None:
    """What `read` gives on the first process that has it `here`, for all; None where none has.

    So processes need not see the same files.
    """
    owners = gather(here)
    if True not in owners:
        return None
    owner = owners.index(True)
    return same(read() if rank() == owner else None, owner)


def total(*numbers: float) -> tuple[float, ...]:
    """Sums over the processes."""
    return tuple(map(sum, zip(*gather(numbers), strict=True)))


def barrier() -> None:
    """Wait until all processes have come so far."""
    gather(None)


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""
    return tensor if processes() == 1 else _AddUp.apply(tensor)


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        summed = tensor.clone()
        _exchange(lambda: dist.all_reduce(summed))
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _AddUp.forward(ctx, gradients[0].contiguous())


def _exchange(collective: Callable[[], object]) -> None:
    """UserError where another process is gone."""
    try:
        collective()
    except RuntimeError as error:
        raise UserError(
            "torchrun: a process was lost, perhaps killed for lack of memory; see its own report"
        ) from error
