"""What a sweep leaves on disk: locks between processes, the order of writing, failures and retries."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaybench import record
from replaybench.diagnostics import Rows
from replaybench.errors import ConfigError, DataError
from replaybench.provenance import host_facts
from replaybench.record import SweepFolder, missing_runs, read_json
from replaybench.spec import EvaluateSettings, RunSpec, TrainSettings


def make_run(**changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "dataset": "toy",
        "data_folder": "data/toy/lineage-000",
        "card_sha256": "a" * 64,
        "task": "push",
        "lineage": 0,
        "data_format": "arrow",
        "level": "stale",
        "replay_ratio": 8.0,
        "baseline": "gipo",
        "baseline_path": None,
        "baseline_sha256": "b" * 64,
        "config": {"sigma": 1.0, "kernel": "gaussian"},
        "seed": 2,
        "train": TrainSettings(),
        "evaluate": EvaluateSettings(),
    }
    return RunSpec(**values | changes)


def make_rows() -> Rows:
    rows = Rows()
    rows.add(8, "success", 1 / 3)
    rows.add(8, "episode_success", 1.0, item=0)
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "out")


HOLD = """
import sys
from pathlib import Path
from replaybench.record import SweepFolder
with SweepFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_one_is_gone(folder: SweepFolder) -> None:
    """The lock belongs to a process: it holds against others, and a killed process leaves none behind."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another sweep is running in this folder"), folder.lock():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with folder.lock():
        pass


def test_a_lock_is_released_by_an_error_in_the_block(folder: SweepFolder) -> None:
    """A sweep that stops on an error can be started again in the same process."""
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock():
        pass


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """An --out below a file names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"), SweepFolder(tmp_path / "file" / "out").lock():
        pass


def test_a_folder_is_claimed_by_one_plan(folder: SweepFolder) -> None:
    """The same plan may claim it again, another one may not, and the plan on disk stays the first."""
    folder.claim({"sweep": {"name": "a"}, "runs": []})
    folder.claim({"runs": [], "sweep": {"name": "a"}})
    with pytest.raises(ConfigError, match="belongs to another sweep"):
        folder.claim({"sweep": {"name": "b"}, "runs": []})
    assert folder.plan() == {"sweep": {"name": "a"}, "runs": []}


def test_the_planned_runs_are_read_back_as_they_were(folder: SweepFolder) -> None:
    """Specs and ids survive the plan's JSON: a control's without level, and settings in no alphabetical order."""
    planned = [make_run(), make_run(level=None, replay_ratio=None, baseline="zero")]
    folder.claim({"sweep": {}, "runs": [run.model_dump(mode="json") for run in planned]})
    assert folder.runs() == planned
    assert [run.run_id() for run in folder.runs()] == [run.run_id() for run in planned]


def test_a_folder_without_a_sweep_is_refused(folder: SweepFolder) -> None:
    """The error says how to make one."""
    with pytest.raises(ConfigError, match="holds no sweep"):
        folder.plan()


def test_a_result_holds_the_spec_the_rows_and_the_manifest(folder: SweepFolder) -> None:
    """Rows come back value by value, each with the columns that name its run; the spec rebuilds the run."""
    run = make_run()
    folder.write_result(run, make_rows(), {"wall_s": 1.5})
    place = folder.path / "runs" / run.run_id()
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "rows.parquet", "spec.json"]
    assert RunSpec.model_validate_json((place / "spec.json").read_text()) == run
    assert json.loads((place / "manifest.json").read_text()) == {"wall_s": 1.5}
    names = {
        "run_id": run.run_id(),
        "dataset": "toy",
        "task": "push",
        "lineage": 0,
        "level": "stale",
        "replay_ratio": 8.0,
        "baseline": "gipo",
        "config": '{"kernel": "gaussian", "sigma": 1.0}',
        "learning_rate": 1e-4,
        "seed": 2,
        "update": 8,
    }
    assert pl.read_parquet(place / "rows.parquet").to_dicts() == [
        names | {"metric": "success", "item": -1, "value": 1 / 3},
        names | {"metric": "episode_success", "item": 0, "value": 1.0},
    ]


def test_what_a_killed_attempt_left_in_mid_write_is_removed(folder: SweepFolder) -> None:
    """A worker that dies by SIGKILL cannot clean up; the run's next attempt does."""
    run = make_run()
    remains = folder.path / "runs" / run.run_id() / ".tmp-1-ab-spec.json"
    remains.parent.mkdir(parents=True)
    remains.write_text("half a")
    folder.write_result(run, make_rows(), {})
    assert not remains.exists()
    assert folder.is_complete(run.run_id())


def test_a_controls_rows_have_the_same_columns_as_a_corrections(folder: SweepFolder) -> None:
    """No level and no ratio are nulls of the same types, so that all runs' tables can be concatenated."""
    runs = [make_run(), make_run(level=None, replay_ratio=None, baseline="zero", config={})]
    for run in runs:
        folder.write_result(run, make_rows(), {})
    tables = [pl.read_parquet(folder.path / "runs" / run.run_id() / "rows.parquet") for run in runs]
    assert tables[0].schema == tables[1].schema
    assert tables[1]["level"].to_list() == [None, None]
    assert pl.concat(tables).height == 4


def test_equal_results_are_equal_bytes(folder: SweepFolder, tmp_path: Path) -> None:
    """rows.parquet holds reproducible values only: written twice, with other manifests, it is the same file."""
    other = SweepFolder(tmp_path / "other")
    run = make_run()
    folder.write_result(run, make_rows(), {"wall_s": 1.0})
    other.write_result(run, make_rows(), {"wall_s": 2.0})
    paths = [place.path / "runs" / run.run_id() / "rows.parquet" for place in (folder, other)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("dies_before", ["spec.json", "rows.parquet", "manifest.json"])
def test_a_run_counts_only_once_its_manifest_is_written(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, dies_before: str
) -> None:
    """Whichever file a run dies before, the run is still missing, and writing it again completes it."""
    run = make_run()
    write = record.atomic_write

    def dying(path: Path) -> Any:
        if path.name == dies_before:
            raise KeyboardInterrupt
        return write(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(record, "atomic_write", dying)
        folder.write_result(run, make_rows(), {})
    assert not folder.is_complete(run.run_id())
    assert missing_runs(folder, [run]) == [run]
    folder.write_result(run, make_rows(), {})
    assert folder.is_complete(run.run_id())
    assert missing_runs(folder, [run]) == []


def test_a_failure_is_recorded_with_its_reason_and_can_be_tried_again(folder: SweepFolder) -> None:
    """A failed run is neither complete nor missing; once forgotten it is missing again, and nothing is left of it."""
    run, other = make_run(), make_run(seed=3)
    folder.write_failure(run, "NumericalError: overflow", "Traceback ...")
    assert folder.has_failed(run.run_id())
    assert not folder.is_complete(run.run_id())
    assert missing_runs(folder, [run, other]) == [other]
    (failure,) = folder.failures()
    assert (failure["run_id"], failure["reason"]) == (run.run_id(), "NumericalError: overflow")
    assert RunSpec.model_validate(failure["spec"]).run_id() == run.run_id()
    assert (folder.path / "failed" / run.run_id() / "traceback.txt").read_text() == "Traceback ..."
    folder.forget_failure(run.run_id())
    assert missing_runs(folder, [run, other]) == [run, other]
    assert folder.failures() == []


def test_a_run_that_is_planned_twice_is_due_once(folder: SweepFolder) -> None:
    """Two equal settings of a grid are one run."""
    assert missing_runs(folder, [make_run(), make_run()]) == [make_run()]


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_record_names_its_file(tmp_path: Path, content: bytes) -> None:
    """Broken JSON, JSON that is no object and other encodings say which file to remove."""
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_json(path)


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_run(folder: SweepFolder) -> None:
    """Where every write fails for want of space, the error says so and the run stays missing.

    /dev/full, which refuses every byte, stands for the disk.
    """
    place = folder.path / "runs" / make_run().run_id()
    place.mkdir(parents=True)
    original = Path.write_bytes

    def write_to_full_disk(self: Path, data: bytes) -> int:
        return original(Path("/dev/full"), data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_to_full_disk)
        with pytest.raises(DataError, match=r"rows\.parquet: cannot be written.*disk is full"):
            folder.write_result(make_run(), make_rows(), {})
    assert [path.name for path in place.iterdir()] == ["spec.json"]
    assert not folder.is_complete(make_run().run_id())


def test_threads_of_one_process_do_not_share_a_lock(folder: SweepFolder) -> None:
    """Two sweeps in one process exclude each other as well."""
    refused: list[ConfigError] = []

    def second() -> None:
        try:
            with SweepFolder(folder.path).lock():
                pass
        except ConfigError as error:
            refused.append(error)

    with folder.lock():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_host_facts_name_no_host() -> None:
    """What a manifest says about the machine may be published: no host name, no user, no path."""
    assert set(host_facts()) == {"machine", "system", "python", "cores"}
