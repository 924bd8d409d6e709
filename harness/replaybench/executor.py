"""Runs jobs in persistent worker processes, one torch thread each, and survives the death of a worker."""

import multiprocessing
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, NamedTuple

from replaybench.errors import ConfigError, DiskError, ReplayBenchError

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

MAX_DEATHS = 3
ORPHAN_CHECK_S = 1.0
MEANWHILE_S = 2.0
# Threads of numerical libraries are fixed before they load: two pools of threads on one core are slower than one.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


class Job(NamedTuple):
    """A name for the user, and what a worker is told: plain text, never functions or models."""

    name: str
    payload: str


class Done(NamedTuple):
    """The end of a job. `error` is None when it succeeded, else (reason, traceback)."""

    job: Job
    result: str
    error: tuple[str, str] | None


class Place(NamedTuple):
    """Where and since when a job runs. node: of a cluster, of which one host may carry several."""

    host: str
    node: str
    process: int
    since_unix_s: float


def this_place(node: str = "") -> Place:
    """Returns this process, from now on."""
    return Place(socket.gethostname(), node, os.getpid(), time.time())


# Takes a job's payload in a worker process and returns text for the driver. A module-level function.
Work = Callable[[str], str]


def fitting_workers(workers: int, gpus_each: float) -> int:
    """Returns how many workers this machine's GPUs have room for, at most `workers`.

    Args:
        gpus_each: What a job asks for, such as 1, or .25 where four share one; 0 sets no limit.

    Raises:
        ConfigError: Jobs ask for a GPU and there is none.
    """
    import torch

    if gpus_each == 0:
        return workers
    if not torch.cuda.is_available():
        raise ConfigError(
            f"[resources] asks for {gpus_each:g} GPU a process, and this machine has none that PyTorch can use. Run it "
            "where there is one, or set num_gpus = 0 to run it on the CPU."
        )
    return min(workers, max(1, int(torch.cuda.device_count() / gpus_each)))


def run_jobs(
    work: Work, jobs: Sequence[Job], workers: int, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[Done]:
    """Yields every job as it ends, in the order of ending; calls `meanwhile` now and then.

    A worker that dies takes the running jobs with it. They are then run one at a time, so that only the one that kills
    its worker is charged with it; that one is given up after three deaths.

    Raises:
        DiskError: A job could not write what it made; what had ended before is yielded first.
    """
    waiting, suspects = list(jobs)[::-1], list[Job]()
    deaths = {job.name: 0 for job in jobs}
    while waiting or suspects:
        queue, limit = (suspects, 1) if suspects else (waiting, workers)
        pool = _start_pool(limit)
        running: dict[Future[tuple[str, tuple[str, str] | None]], Job] = {}
        try:
            while queue or running:
                while queue and len(running) < limit:
                    # Taken off the list once it is submitted: a pool that has just broken refuses it.
                    running[pool.submit(guarded, work, queue[-1].payload)] = queue[-1]
                    queue.pop()
                finished, _ = wait(running, MEANWHILE_S, return_when=FIRST_COMPLETED)
                meanwhile()
                # Results first, so that the death of one worker does not throw away what another has finished.
                for future in sorted(finished, key=lambda future: future.exception() is not None):
                    result, error = future.result()
                    yield Done(running.pop(future), result, error)
        except BrokenProcessPool:
            is_culprit = len(running) == 1
            for job in running.values():
                deaths[job.name] += is_culprit
                if deaths[job.name] < MAX_DEATHS:
                    suspects.append(job)
                else:
                    yield Done(job, "", (f"its worker process died {MAX_DEATHS} times", ""))
        finally:
            _stop_pool(pool)


def _start_pool(workers: int) -> ProcessPoolExecutor:
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("spawn")
    started = context.Value("i", 0)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_initialise, initargs=(os.getpid(), started))


def _stop_pool(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _initialise(driver: int, started: "Synchronized[int]") -> None:
    import signal

    import torch

    # Ctrl-C reaches the whole process group; the driver alone decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with started.get_lock():
        number = started.value
        started.value += 1
    if torch.cuda.is_available():
        # Workers take turns at the GPUs; "cuda" then means this worker's own, which also renders.
        gpu = number % torch.cuda.device_count()
        torch.cuda.set_device(gpu)
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", str(gpu))
    threading.Thread(target=_die_with, args=(driver,), daemon=True).start()


def _die_with(driver: int) -> None:
    """Ends this worker when the driver is gone, so that a killed sweep leaves nothing running."""
    while os.getppid() == driver:
        time.sleep(ORPHAN_CHECK_S)
    os._exit(1)


def guarded(work: Work, payload: str) -> tuple[str, tuple[str, str] | None]:
    """Returns (result, None), or ("", (reason, traceback)) where the work raised."""
    try:
        return work(payload), None
    except DiskError:
        # Not the job's fault, and every other job would meet it: the driver stops.
        raise
    except ReplayBenchError as error:
        return "", (f"{type(error).__name__}: {error}", traceback.format_exc())
    except Exception as error:
        # A run's own fault must not end the sweep; the traceback is written beside the run.
        return "", (f"{type(error).__name__}: {error}", traceback.format_exc())
