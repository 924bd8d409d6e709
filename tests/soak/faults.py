"""Breaks a small GridWorld sweep in many ways and checks that the same command ends it as if nothing had happened.

python tests/soak/faults.py [KILLS]

A process that has everything loaded forks each driver, so that a sweep takes a second; drivers and workers are real
processes that run the command line. After each fault every run is there once, with the bytes of an undisturbed
sweep, and no record of before has been written again.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn

import numpy as np
import polars  # noqa: F401  loaded before the forks
import torch

from replaybench import diagnostics, executor, learner, provenance, sweep, train  # noqa: F401
from replaybench.cli import main as command_line
from replaybench.cli import sweep as sweep_command  # noqa: F401
from replaybench.maths import advantages  # noqa: F401
from replaybench.policy import tabular  # noqa: F401
from replaybench.seeding import numpy_generator
from replaybench.suites import gridworld  # noqa: F401

SWEEP = """
name = "faults"
description = "Twelve runs of a second in all."
datasets = ["gridworld-5x5"]
lineages = [0]
levels = ["fresh"]
replay_ratios = [1, 8]
baselines = ["zero", "no_correction", "ppo_clip", "gipo", "sapo", "tis", "cispo"]
reference = "ppo_clip"

[train]
updates = 32
batch_size = 128
learning_rate = 2e-2
value_learning_rate = 5e-2
value_warmup_updates = 20

[evaluate]
episodes = 200
max_steps = 40
"""
PATIENCE_S = 120
TARGETS = ("driver", "worker", "both")


class Bench(NamedTuple):
    """What every trial starts from: the bytes of each run's record in an undisturbed sweep, and how long that took."""

    folder: Path
    rows: dict[str, bytes]
    seconds: float


def start(folder: Path, out: Path, change: Callable[[], object] = lambda: None) -> int:
    """Starts a sweep in a process of its own, in which `change` has been made, and returns its number."""
    process = os.fork()
    if process == 0:
        _drive(folder, out, change)
    return process


def _drive(folder: Path, out: Path, change: Callable[[], object]) -> NoReturn:
    os.setsid()
    os.chdir(folder)
    said = os.open(f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    # Workers that are forked too need no second to load everything.
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method: get_context("fork")  # type: ignore[assignment]
    initialise = executor._initialise
    executor._initialise = lambda *given: (_forget_lock(), initialise(*given))
    sys.argv = ["replaybench", "sweep", "run", "faults.toml", "--out", str(out), "--no-report", "--workers", "2"]
    code: object = 1
    try:
        change()
        command_line()
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _forget_lock() -> None:
    """Closes what a worker that is started anew does not get from its driver: the lock of the output folder."""
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".lock"):
                os.close(int(descriptor))


def end(process: int) -> int:
    """Waits for a process and returns its exit code, negative for a signal."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    raise AssertionError(f"a sweep hangs for {PATIENCE_S} s")


def children(process: int) -> list[int]:
    """Returns the processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def records(out: Path) -> dict[str, int]:
    """When the record of each complete run was finished, by run id."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/manifest.json")}


def check_complete(bench: Bench, out: Path, before: dict[str, int]) -> None:
    """Nothing lost, nothing duplicated, results identical."""
    after = records(out)
    said = (bench.folder / f"{out.name}.log").read_text()
    assert set(after) == set(bench.rows), f"lost or made up: {set(after) ^ set(bench.rows)}\n{said}"
    assert before.items() <= after.items(), f"a finished record was written again\n{said}"
    for name, rows in bench.rows.items():
        assert (out / "runs" / name / "rows.parquet").read_bytes() == rows, f"{name} differs"
    assert not list(out.glob("failed/*")), said
    assert not list(out.glob("runs/**/.tmp-*")), "half a file is left"


def resume(bench: Bench, out: Path) -> None:
    """Gives the same command again, to the end."""
    before = records(out)
    assert end(start(bench.folder, out)) == 0, (bench.folder / f"{out.name}.log").read_text()
    check_complete(bench, out, before)


def make_bench(folder: Path) -> Bench:
    """Makes the logs, and sweeps once undisturbed."""
    (folder / "faults.toml").write_text(SWEEP)
    assert end(start(folder, folder / "logs")) == 0, (folder / "logs.log").read_text()
    started = time.monotonic()
    assert end(start(folder, folder / "undisturbed")) == 0
    seconds = time.monotonic() - started
    rows = {path.parent.name: path.read_bytes() for path in (folder / "undisturbed").glob("runs/*/rows.parquet")}
    assert len(rows) == 13
    return Bench(folder, rows, seconds)


def kill_at(bench: Bench, out: Path, target: str, rng: np.random.Generator) -> str:
    """Kills at a random moment and says how far the sweep was."""
    driver = start(bench.folder, out)
    time.sleep(rng.uniform(0.0, bench.seconds))
    workers = children(driver)
    victims = {"driver": [driver], "worker": workers and [int(rng.choice(workers))], "both": [driver, *workers]}[target]
    done = len(records(out))
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    code = end(driver)
    assert code in (0, -signal.SIGKILL), (bench.folder / f"{out.name}.log").read_text()
    # What workers without a driver are still at may end beside the sweep that takes over.
    resume(bench, out)
    return "before the first run" if not done else "after the last run" if done == len(bench.rows) else "in mid-sweep"


def nan_in_a_run(bench: Bench, out: Path) -> None:
    """A value that is not a number fails its run alone, and says so; a retry mends it."""

    def change() -> None:
        value_step = learner.Learner.value_step

        def broken(self: learner.Learner, *arguments: object) -> float:
            if self.baseline.name == "gipo":
                self.value_target[0] = float("nan")
            return value_step(self, *arguments)  # type: ignore[arg-type]

        learner.Learner.value_step = broken  # type: ignore[method-assign,assignment]

    assert end(start(bench.folder, out, change)) == 1
    failed = [path.read_text() for path in out.glob("failed/*/failure.json")]
    assert len(failed) == 2, failed
    assert all("NumericalError" in text and "not finite" in text for text in failed), failed
    sweep.retry_failed(sweep.SweepFolder(out))
    resume(bench, out)


def clock_jumps_back(bench: Bench, out: Path) -> None:
    """The wall clock goes back by an hour at every look."""
    looks = iter(range(0, 10**9, 3600))
    now = time.time()

    def change() -> None:
        time.time = lambda: now - next(looks)

    assert end(start(bench.folder, out, change)) == 0
    check_complete(bench, out, {})


def torn_shard(bench: Bench, out: Path) -> None:
    """A shard is cut short in mid-sweep: runs that meet it fail and name it; made whole, the same command goes on."""
    shard = next((bench.folder / "data").rglob("fresh-00000.arrow"))
    content = shard.read_bytes()
    driver = start(bench.folder, out)
    time.sleep(bench.seconds / 2)
    # Replaced as a copy that failed would be; what maps the old file keeps it.
    torn = shard.with_name("torn")
    torn.write_bytes(content[: len(content) // 2])
    torn.replace(shard)
    code = end(driver)
    before = records(out)
    failed = [path.read_text() for path in out.glob("failed/*/failure.json")]
    assert code == (1 if failed else 0)
    assert len(before) + len(failed) == len(bench.rows)
    assert all(shard.name in text and "DataError" in text for text in failed), failed
    shard.write_bytes(content)
    resume(bench, out)


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Callable[[str], None]]:
    """Mounts a file system of its own and yields what changes its options."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)

    folder.mkdir()
    mount(f"size={kibibytes}k")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(bench: Bench, out: Path) -> None:
    """The disk is full in mid-sweep: it stops, says so, and goes on once there is space."""
    with small_disk(out, 60) as remount:
        assert end(start(bench.folder, out)) == 1
        assert "The disk is full" in (bench.folder / f"{out.name}.log").read_text()
        remount("size=64m")
        resume(bench, out)


def read_only(bench: Bench, out: Path) -> None:
    """The output turns read-only in mid-sweep, as a disk with faults does."""
    with small_disk(out, 65536) as remount:
        driver = start(bench.folder, out)
        while not records(out):
            time.sleep(0.005)
        # A file that is being written at this moment keeps the disk writable.
        while subprocess.run(["mount", "-o", "remount,ro", str(out)], capture_output=True, check=False).returncode:
            time.sleep(0.002)
        code = end(driver)
        assert code in (0, 1)
        if code == 1:
            said = (bench.folder / f"{out.name}.log").read_text()
            assert "read-only" in said and "Traceback" not in said, said
        remount("rw,size=64m")
        resume(bench, out)


def two_sweeps(bench: Bench, out: Path) -> None:
    """Of two sweeps on one folder the second is refused, and the first completes."""
    first = start(bench.folder, out)
    while not (out / "sweep.json").exists():
        time.sleep(0.002)
    os.kill(first, signal.SIGSTOP)
    assert end(start(bench.folder, out)) == 2
    os.kill(first, signal.SIGCONT)
    assert end(first) == 0
    check_complete(bench, out, {})


FAULTS = (nan_in_a_run, clock_jumps_back, torn_shard, full_disk, read_only, two_sweeps)


def main(kills: int) -> None:
    can_mount = os.geteuid() == 0
    with TemporaryDirectory(prefix="replaybench-faults-") as name:
        bench = make_bench(Path(name))
        print(f"undisturbed: {len(bench.rows)} runs in {bench.seconds:.1f} s", flush=True)
        for fault in FAULTS:
            if fault in (full_disk, read_only) and not can_mount:
                print(f"{fault.__name__}: left out, mounting a file system needs root")
                continue
            fault(bench, bench.folder / fault.__name__)
            print(f"{fault.__name__}: as if nothing had happened", flush=True)
        counts: Counter[tuple[str, str]] = Counter()
        for number in range(kills):
            target = TARGETS[number % len(TARGETS)]
            rng = numpy_generator("faults", number)
            counts[target, kill_at(bench, bench.folder / f"kill{number}", target, rng)] += 1
        for (target, stage), count in sorted(counts.items()):
            print(f"killed {target} {stage}: {count}")
        print(f"{counts.total()} kills: 0 runs lost, 0 written twice, 0 with other results")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
