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

_jobs: Sequence[Callable[[], object]] = ()  # in a worker: what it was forked for


def ahead(what: str, jobs: Sequence[Callable[[], object]]) -> None:
    """Run jobs, closures too, that keep their results themselves, each with one thread; raises what
    a job raises. With one worker they run here. Inside a job, under torchrun or on a GPU nothing is
    done ahead."""
    most = min(workers(), len(jobs))
    if len(jobs) < 2 or _jobs or processes() > 1 or torch.cuda.is_available():
        return
    with one_thread():  # here as there: sums over more would round otherwise
        if most < 2:
            for job in jobs:
                job()
            return
        pool = ProcessPoolExecutor(most, get_context("fork"), _begin, (jobs,))
        try:
            with pool, progress(what, len(jobs)) as advance:
                for _ in pool.map(_run, range(len(jobs))):
                    advance(1)
        except BrokenExecutor as error:
            reason = f"a process was killed, perhaps for lack of memory; {WORKERS}=1 works in one"
            raise UserError(f"{what}: {reason}") from error


def _begin(jobs: Sequence[Callable[[], object]]) -> None:
    global _jobs
    _jobs = jobs
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # by Ctrl-C end without a traceback
    silence()


def _run(number: int) -> None:
    _jobs[number]()
