"""Jobs in worker processes: results, exceptions, killed workers and a killed driver."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replaybench.errors import ConfigError, DataError, DiskError
from replaybench.executor import MAX_DEATHS, Done, Job, fitting_workers, run_jobs

ORPHAN_LIMIT_S = 5.0


def work(payload: str) -> str:
    """Does what the payload says; runs in a worker."""
    verb, _, rest = payload.partition(" ")
    if verb == "fail":
        raise ZeroDivisionError(rest)
    if verb == "refuse":
        raise DataError(rest)
    if verb == "full":
        raise DiskError(rest)
    if verb in ("die", "die-once"):
        marks = Path(rest)
        attempts = len(list(marks.parent.glob(f"{marks.name}*")))
        Path(f"{marks}{attempts}").touch()
        if verb == "die" or attempts == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if verb == "wait":
        time.sleep(0.5)
    if verb == "process":
        import torch

        return f"{os.getpid()} {torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}"
    return payload.upper()


def jobs_of(*payloads: str) -> list[Job]:
    return [Job(f"job {number}", payload) for number, payload in enumerate(payloads)]


def ended(*payloads: str, workers: int = 2) -> dict[str, Done]:
    done = list(run_jobs(work, jobs_of(*payloads), workers))
    assert len({item.job.name for item in done}) == len(done), "a job ended twice"
    return {item.job.payload: item for item in done}


def test_no_jobs_start_no_workers() -> None:
    """Nothing to do yields nothing."""
    assert list(run_jobs(work, [], 2)) == []


@pytest.mark.parametrize(("gpus", "gpus_each", "expected"), [(0, 0, 8), (2, 0, 8), (2, 1, 2), (1, 0.25, 4), (1, 2, 1)])
def test_gpus_limit_the_workers(monkeypatch: pytest.MonkeyPatch, gpus: int, gpus_each: float, expected: int) -> None:
    """Eight workers are asked for, and there are eight where a job asks for no GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert fitting_workers(8, gpus_each) == expected
    if not gpus:
        with pytest.raises(ConfigError, match="set num_gpus = 0"):
            fitting_workers(8, 1)


@pytest.mark.slow
def test_a_disk_that_refuses_stops_the_jobs_and_is_charged_to_none() -> None:
    """What ended before is yielded, then the driver gets the worker's error."""
    ending = run_jobs(work, jobs_of("a", "full rows.parquet", "b"), 1)
    assert next(ending).result == "A"
    with pytest.raises(DiskError, match=r"rows\.parquet"):
        next(ending)


@pytest.mark.slow
def test_every_job_ends_once_and_an_exception_stops_only_its_own() -> None:
    """Results come back as text; an error of ours keeps its message, any other its type, both with a traceback."""
    done = ended("a", "fail by zero", "b", "refuse bad shard", "c")
    assert set(done) == {"a", "fail by zero", "b", "refuse bad shard", "c"}
    assert {payload: item.result for payload, item in done.items() if item.error is None} == {
        "a": "A",
        "b": "B",
        "c": "C",
    }
    for payload, reason in (
        ("fail by zero", "ZeroDivisionError: by zero"),
        ("refuse bad shard", "DataError: bad shard"),
    ):
        error = done[payload].error
        assert error is not None
        assert error[0] == reason
        assert "Traceback" in error[1]
        assert "in work" in error[1]


@pytest.mark.slow
def test_workers_persist_and_have_one_thread_each() -> None:
    """Six jobs run in at most two processes, none of them this one, with one thread for torch and its libraries."""
    done = ended(*(f"process {number}" for number in range(6)))
    facts = [item.result.split() for item in done.values()]
    assert {tuple(threads) for _, *threads in facts} == {("1", "1")}
    processes = {process for process, *_ in facts}
    assert 1 <= len(processes) <= 2
    assert str(os.getpid()) not in processes


@pytest.mark.slow
def test_jobs_of_a_killed_worker_are_tried_again(tmp_path: Path) -> None:
    """A worker that is killed once, as by a full memory, costs no result."""
    done = ended("a", f"die-once {tmp_path / 'mark'}", "b", "c")
    assert all(item.error is None for item in done.values())
    assert len(done) == 4
    assert (tmp_path / "mark1").exists()


@pytest.mark.slow
def test_a_job_that_always_kills_its_worker_fails_after_three_attempts(tmp_path: Path) -> None:
    """It is recorded as failed, and the jobs behind it still run."""
    payload = f"die {tmp_path / 'mark'}"
    done = ended(payload, "a", "b", workers=1)
    error = done[payload].error
    assert error is not None
    assert "worker process died 3 times" in error[0]
    assert len(list(tmp_path.iterdir())) == MAX_DEATHS == 3
    assert (done["a"].result, done["b"].result) == ("A", "B")


@pytest.mark.slow
def test_a_job_that_kills_its_worker_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    """The jobs beside it are run again alone and succeed; only the culprit is charged, three times."""
    payload = f"die {tmp_path / 'mark'}"
    done = ended(*(f"wait {number}" for number in range(4)), payload, *"abcd", workers=3)
    assert [item.job.payload for item in done.values() if item.error] == [payload]
    assert len(done) == 9
    # One death beside others, which charges nobody, and three alone; it may also have been alone from the start.
    assert len(list(tmp_path.iterdir())) in (MAX_DEATHS, MAX_DEATHS + 1)


@pytest.mark.slow
def test_no_job_is_lost_when_workers_die_between_jobs() -> None:
    """Workers that die while the driver handles a result take no job with them that had not begun.

    The driver stops at the first result, its workers are killed, and only then does it hand out the next job.
    """
    results = run_jobs(work, jobs_of("a", "b", "c"), 1)
    names = [next(results).job.payload]
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    # The pool learns of the death in a thread of its own.
    time.sleep(0.5)
    names += [done.job.payload for done in results]
    assert sorted(names) == ["a", "b", "c"]


@pytest.mark.slow
def test_stopping_early_ends_the_workers() -> None:
    """A driver that turns away in the middle, as after Ctrl-C, leaves no process behind."""
    results = run_jobs(work, jobs_of("a", "b", "c"), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    for process in multiprocessing.active_children():
        process.join(6 * ORPHAN_LIMIT_S)
    assert multiprocessing.active_children() == []


DRIVER = """
import os, sys, time
from replaybench.executor import Job, run_jobs

def work(payload):
    with open(payload, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    list(run_jobs(work, [Job(path, path) for path in sys.argv[1:]], 2))
"""


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: object, seconds: float) -> bool:
    """Whether the condition, a function, becomes true in this time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


@pytest.mark.slow
def test_workers_of_a_killed_driver_end_by_themselves(tmp_path: Path) -> None:
    """After SIGKILL to the driver its busy workers are gone within five seconds."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    marks = [tmp_path / "one", tmp_path / "two"]
    driver = subprocess.Popen([sys.executable, str(script), *map(str, marks)])
    try:
        assert wait_for(lambda: all(mark.exists() and mark.read_text() for mark in marks), 60)
        workers = [int(mark.read_text()) for mark in marks]
        assert all(map(is_alive, workers))
    finally:
        driver.kill()
        driver.wait()
    assert wait_for(lambda: not any(map(is_alive, workers)), ORPHAN_LIMIT_S)
