"""Independent jobs in forked processes, ahead of the moment when their results are needed."""

import ctypes
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context

import torch

from advprune.core.device import WORKERS, one_thread, workers
from advprune.core.distributed import processes
from advprune.core.errors import UserError
from advprune.core.progress import progress, silence

_jobs: Sequence[Callable[[], object]] = ()  # those at work, which processes are forked with


def ahead(what: str, jobs: Sequence[Callable[[], object]]) -> None:
    """Run jobs, closures too, that keep their results themselves, each with one thread; raises what
    a job raises. With one worker they run here. Inside a job, under torchrun or on a GPU nothing is
    done ahead."""
    global _jobs
    most = min(workers(), len(jobs))
    if len(jobs) < 2 or _jobs or processes() > 1 or torch.cuda.is_available():
        return
    _jobs, pool = jobs, ProcessPoolExecutor(most, get_context("fork"), _begin)
    try:
        # With one thread wherever they run: sums over more would round otherwise.
        with one_thread(), pool, progress(what, len(jobs)) as advance:
            run = pool.map if most > 1 else map
            for _ in run(_run, range(len(jobs))):
                advance(1)
    except BrokenExecutor as error:
        reason = f"a process was killed, perhaps for lack of memory; {WORKERS}=1 works in one"
        raise UserError(f"{what}: {reason}") from error
    finally:
        _jobs = ()


def _begin() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    silence()


def _run(number: int) -> None:
    _jobs[number]()
