"""Sweeps as a user runs them: interrupted and resumed, with faulty baselines, twice at once, on a full disk."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from replaybench.paths import BASELINES_DIR
from replaybench.plan import SweepSpec
from replaybench.store.toml import to_toml

pytestmark = pytest.mark.slow

Cli = Callable[..., subprocess.CompletedProcess[str]]
ToySweep = Callable[..., SweepSpec]
NUM_SMOKE_RUNS = 87
PATIENCE_S = 600
FAULTY = '''"""Fails on purpose."""
from dataclasses import dataclass
from replaybench.baseline import Declaration

@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing."""

DECLARATION = Declaration(paper="none", bounded=False)

def surrogate(items, config):
    '''
RAISES = FAULTY + 'raise RuntimeError("on purpose")\n'
OVERFLOWS = FAULTY + "return (items.log_ratio + 1e3).exp() * items.advantage\n"


def start_smoke(data: Path, out: Path, cwd: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "replaybench", "sweep", "run", "smoke", "--no-report"]
    command += ["--data", str(data), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def manifests(out: Path) -> dict[str, int]:
    """When the record of each complete run was finished, by run id."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/manifest.json")}


def wait_for_runs(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """Waits until so many runs are complete, while the sweep goes on."""
    deadline = time.monotonic() + PATIENCE_S
    while len(manifests(out)) < count:
        assert process.poll() is None, "the sweep ended too early"
        assert time.monotonic() < deadline, "the sweep makes no progress"
        time.sleep(0.05)


def all_rows(out: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(out.glob("runs/*/rows.parquet"))])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and out/ of the smoke preset, swept in one go."""
    folder = tmp_path_factory.mktemp("smoke")
    process = start_smoke(folder / "data", folder / "out", folder)
    _, progress = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, progress
    assert "logs: 3/3 done" in progress
    assert f"{NUM_SMOKE_RUNS} of {NUM_SMOKE_RUNS} runs complete, 0 failed" in progress
    return folder


def test_a_sweep_that_was_interrupted_and_killed_ends_like_one_in_one_go(smoke: Path, tmp_path: Path) -> None:
    """After Ctrl-C, and later SIGKILL, the same command runs exactly the missing runs; the tables are identical."""
    out = tmp_path / "out"
    process = start_smoke(smoke / "data", out, tmp_path)
    wait_for_runs(process, out, 8)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    interrupted = manifests(out)
    assert 8 <= len(interrupted) < NUM_SMOKE_RUNS

    process = start_smoke(smoke / "data", out, tmp_path)
    wait_for_runs(process, out, len(interrupted) + 8)
    process.kill()
    process.communicate()
    # Workers may finish what they are at before they notice.
    time.sleep(3)
    killed = manifests(out)
    assert len(killed) < NUM_SMOKE_RUNS

    process = start_smoke(smoke / "data", out, tmp_path)
    _, said = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, said
    assert f"runs: {NUM_SMOKE_RUNS - len(killed)}/{NUM_SMOKE_RUNS - len(killed)} done" in said
    resumed = manifests(out)
    assert len(resumed) == NUM_SMOKE_RUNS
    assert interrupted.items() <= killed.items() <= resumed.items()
    assert not list(out.rglob(".tmp-*"))
    assert all_rows(out).equals(all_rows(smoke / "out"))


def test_ctrl_c_exits_130_and_says_how_to_go_on(quick: Path, tmp_path: Path) -> None:
    """An interrupted sweep is not taken for a finished one."""
    command = [sys.executable, "-m", "replaybench", "sweep", "run", str(quick), "--out", "out", "--no-report"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "out" / "sweep.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run the same command again to go on" in said


def test_status_knows_every_run_of_a_complete_sweep(smoke: Path, cli: Cli) -> None:
    """Read back from the plan, each correction has 12 runs (3 lineages x 2 levels x 2 ratios), the control 3."""
    status = json.loads(cli("sweep", "status", smoke / "out", "--json").stdout)
    assert [row["complete"] for row in status] == [3 if row["baseline"] == "zero" else 12 for row in status]
    assert sum(row["planned"] for row in status) == NUM_SMOKE_RUNS
    assert all(row["failed"] == row["missing"] == 0 for row in status)


def test_every_run_is_a_record_of_its_own(smoke: Path) -> None:
    """Each run's folder holds its spec, its rows and a manifest that names it."""
    for place in (smoke / "out" / "runs").iterdir():
        assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "rows.parquet", "spec.json"]
        assert json.loads((place / "manifest.json").read_text())["run_id"] == place.name


def write_sweep(spec: SweepSpec, folder: Path) -> Path:
    path = folder / "quick.toml"
    path.write_text(to_toml(spec.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return path


@pytest.fixture
def quick(toy_sweep: ToySweep, tmp_path: Path) -> Path:
    """A sweep file with five runs on one lineage of a small log."""
    spec = toy_sweep(lineages=(0,), replay_ratios=(1.0,), baselines=("zero", "ppo_clip", "gipo"))
    return write_sweep(spec, tmp_path)


@pytest.fixture
def faulty(quick: Path, tmp_path: Path, cli: Cli) -> subprocess.CompletedProcess[str]:
    """A finished sweep with two faulty baselines and one of the user's own that works, in out/."""
    (tmp_path / "raises.py").write_text(RAISES)
    (tmp_path / "overflows.py").write_text(OVERFLOWS)
    (tmp_path / "mine.py").write_text((BASELINES_DIR / "gipo.py").read_text())
    own = [part for name in ("raises", "overflows", "mine") for part in ("--baseline", f"{name}.py")]
    return cli("sweep", "run", quick, *own, "--out", "out", "--no-report", "--workers", 2)


def test_faulty_baselines_fail_alone(faulty: subprocess.CompletedProcess[str], tmp_path: Path, cli: Cli) -> None:
    """What raises and what overflows is recorded with its reason; all other runs complete, the user's own included.

    The user's own file is a copy of a shipped one and gives its numbers.
    """
    assert "7 of 11 runs complete, 4 failed" in faulty.stderr
    status = {row["baseline"]: row for row in json.loads(cli("sweep", "status", "out", "--json").stdout)}
    complete = {name: (row["complete"], row["failed"]) for name, row in status.items()}
    assert complete == {
        "zero": (1, 0),
        "ppo_clip": (2, 0),
        "gipo": (2, 0),
        "raises": (0, 2),
        "overflows": (0, 2),
        "mine": (2, 0),
    }
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "failed").glob("*/failure.json")]
    reasons = {record["spec"]["baseline"]: record["reason"] for record in records}
    assert reasons["raises"] == "RuntimeError: on purpose"
    assert reasons["overflows"].startswith("NumericalError: Baseline 'overflows'")
    assert "overflow" in reasons["overflows"]
    rows = all_rows(tmp_path / "out").drop("run_id")
    mine, original = (rows.filter(pl.col("baseline") == name).drop("baseline") for name in ("mine", "gipo"))
    assert mine.sort(pl.all()).equals(original.sort(pl.all()))


def test_a_sweep_with_failed_runs_exits_1(faulty: subprocess.CompletedProcess[str]) -> None:
    """Scripts can tell that results are missing."""
    assert faulty.returncode == 1


def test_a_second_sweep_in_the_same_folder_is_refused(quick: Path, tmp_path: Path, cli: Cli) -> None:
    """While one sweep runs, another with the same --out exits 2 at once and changes nothing; the first completes."""
    command = [sys.executable, "-m", "replaybench", "sweep", "run", str(quick), "--out", "out", "--no-report"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "out" / "sweep.json").exists():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # Held still, so that the first cannot be over before the second begins.
    first.send_signal(signal.SIGSTOP)
    second = cli("sweep", "run", quick, "--out", "out", "--no-report")
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "another sweep is running in this folder" in second.stderr
    assert "Traceback" not in second.stderr
    _, said = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, said
    assert "5 of 5 runs complete" in said


def test_a_folder_of_another_sweep_is_refused(quick: Path, tmp_path: Path, cli: Cli) -> None:
    """The same --out with another baseline exits 2 and leaves the plan alone."""
    assert cli("sweep", "run", quick, "--out", "out", "--no-report", "--limit", 1).returncode == 0
    plan = (tmp_path / "out" / "sweep.json").read_bytes()
    other = cli("sweep", "run", quick, "--out", "out", "--no-report", "--baseline", "tis")
    assert other.returncode == 2
    assert "belongs to another sweep" in other.stderr
    assert (tmp_path / "out" / "sweep.json").read_bytes() == plan


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of so many KiB, where this machine lets the test mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("small_disk", [8, 40], ids=["before the plan", "in the middle"], indirect=True)
def test_a_full_disk_is_said_in_plain_words_and_costs_nothing_that_was_done(
    quick: Path, small_disk: Path, cli: Cli
) -> None:
    """The reason and what to do is printed without a traceback; with more space the same command goes on.

    Complete runs stay as they were, and every other one stays due: a full disk is no fault of the run.
    """
    command = ["sweep", "run", quick, "--out", small_disk / "out", "--no-report", "--workers", 1]
    stopped = cli(*command)
    assert stopped.returncode == 1
    assert "The disk is full: free some space" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    done = manifests(small_disk / "out")
    assert len(done) < 5
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    resumed = cli(*command)
    assert resumed.returncode == 0, resumed.stderr
    after = manifests(small_disk / "out")
    assert done.items() <= after.items()
    assert len(after) == 5
