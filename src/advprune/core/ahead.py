"""Independent jobs in parallel processes, ahead of the moment when their results are needed."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from advprune.core.distributed import processes
from advprune.core.errors import UserError
from advprune.core.progress import progress, silence

WORKERS = "ADVPRUNE_WORKERS"  # environment variable: how many processes; by default one per core
_jobs: Sequence[Callable[[], object]] = ()  # in a worker: what it was forked for


def ahead(what: str, jobs: Sequence[Callable[[], object]]) -> None:
    """Run jobs that keep their results themselves (`resume.Parts`); raises what a job raises.

    Workers are forked, so jobs may be closures, compute with one thread and die with this process.
    With one worker they run here. Inside a job, under torchrun or on a GPU nothing is done ahead.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    given = os.environ.get(WORKERS) or str(cores)
    if not given.isdecimal() or given == "0":
        raise UserError(f"{WORKERS} is {given!r}; give a number of processes, 1 or more")
    workers = min(int(given), len(jobs))
    if len(jobs) < 2 or _jobs or processes() > 1 or torch.cuda.is_available():
        return
    if workers < 2:  # here, but with one thread as there: sums over more would round otherwise
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                job()
        finally:
            torch.set_num_threads(threads)
        return
    pool = ProcessPoolExecutor(workers, get_context("fork"), _begin, (jobs, os.getpid()))
    try:
        with pool, progress(what, len(jobs)) as advance:
            for _ in pool.map(_run, range(len(jobs))):
                advance(1)
    except BrokenProcessPool as error:
        reason = f"a process was killed, perhaps for lack of memory; {WORKERS}=1 works in one"
        raise UserError(f"{what}: {reason}") from error


def _begin(jobs: Sequence[Callable[[], object]], parent: int) -> None:
    global _jobs
    _jobs = jobs
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)
    silence()


def _run(number: int) -> None:
    _jobs[number]()
