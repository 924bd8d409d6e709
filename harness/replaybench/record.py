"""What a sweep leaves on disk, so that nothing is lost and nothing is counted twice.

<out>/sweep.json                       the plan: the spec and every run
<out>/runs/<run id>/spec.json          what decides the run's numbers
<out>/runs/<run id>/rows.parquet       the measurements, reproducible values only
<out>/runs/<run id>/manifest.json      clocks, host, attempts; written last: a run that has one is complete
<out>/collected/<run id>/lineage-NNN/  the log of what a buffered run collected, where it is kept
<out>/failed/<run id>/failure.json     why a run has no result, with traceback.txt
<out>/running/<run id>.json            where and since when it runs; of no meaning unless the lock is held
<out>/.lock                            held by the driver through the operating system, gone with its process
"""

import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaybench.errors import ConfigError, DataError
from replaybench.spec import RunSpec
from replaybench.store.card import FILE_NAME as CARD
from replaybench.store.files import TEMPORARY, atomic_write, locked, read_text

if TYPE_CHECKING:
    from replaybench.diagnostics import Rows

MANIFEST = "manifest.json"
FAILURE = "failure.json"


class SweepFolder:
    """The output folder of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process.

        Raises:
            ConfigError: Another process is sweeping into it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / ".lock", wait=False))
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path}: another sweep is running in this folder. Wait for it, or choose another --out."
                ) from error
            yield

    def is_locked(self) -> bool:
        """Whether a sweep is running in this folder."""
        path = self.path / ".lock"
        if not path.exists():
            return False
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def claim(self, plan: Mapping[str, Any]) -> None:
        """Writes the plan, or checks that the folder belongs to the same one.

        Raises:
            ConfigError: The folder holds another sweep.
        """
        text = json.dumps(plan, indent=1)
        path = self.path / "sweep.json"
        if not path.exists():
            _write_text(path, text)
        elif read_json(path) != json.loads(text):
            raise self._foreign()

    def refuse_foreign(self, sweep: Mapping[str, Any]) -> None:
        """Refuses a folder of another sweep before anything costly is done; `claim` compares the rest.

        Raises:
            ConfigError: The folder holds another sweep.
        """
        path = self.path / "sweep.json"
        if path.exists() and read_json(path).get("sweep") != json.loads(json.dumps(sweep)):
            raise self._foreign()

    def _foreign(self) -> ConfigError:
        return ConfigError(
            f"{self.path}: this folder belongs to another sweep, or to data or baselines that have changed since. "
            "Choose another --out, or remove the folder to start again."
        )

    def plan(self) -> dict[str, Any]:
        """Returns the plan that was claimed.

        Raises:
            ConfigError: The folder holds no sweep.
        """
        path = self.path / "sweep.json"
        if not path.exists():
            raise ConfigError(f"{self.path}: holds no sweep. Run `replaybench sweep run` with this --out first.")
        return read_json(path)

    def runs(self) -> list[RunSpec]:
        """Returns every planned run."""
        return [RunSpec.model_validate(run) for run in self.plan()["runs"]]

    def is_complete(self, run_id: str) -> bool:
        """Whether the run has a result."""
        return (self.path / "runs" / run_id / MANIFEST).exists()

    def has_failed(self, run_id: str) -> bool:
        """Whether the run ended without a result."""
        return (self.path / "failed" / run_id / FAILURE).exists()

    def failures(self) -> list[dict[str, Any]]:
        """Returns the recorded failure of each failed run."""
        return [read_json(path) for path in sorted((self.path / "failed").glob(f"*/{FAILURE}"))]

    def write_running(self, run_id: str, place: Mapping[str, Any]) -> None:
        """Writes where a run has started."""
        _write_text(self.path / "running" / f"{run_id}.json", json.dumps({"run_id": run_id, **place}))

    def forget_running(self, run_id: str) -> None:
        """Removes the note that a run is running."""
        (self.path / "running" / f"{run_id}.json").unlink(missing_ok=True)

    def forget_all_running(self) -> None:
        """Removes what a driver that was killed left."""
        shutil.rmtree(self.path / "running", ignore_errors=True)

    def running(self) -> list[dict[str, Any]]:
        """Returns where each run is running, oldest first; empty where no sweep holds the folder."""
        found = []
        for path in (self.path / "running").glob("[!.]*.json") if self.is_locked() else ():
            # A note may go while it is looked at.
            with suppress(DataError):
                note = read_json(path)
                if not self.is_complete(path.stem) and not self.has_failed(path.stem):
                    found.append(note)
        return sorted(found, key=lambda note: note["since_unix_s"])

    def forget_failure(self, run_id: str) -> None:
        """Removes the record of a failure, so that the run is due again."""
        shutil.rmtree(self.path / "failed" / run_id, ignore_errors=True)

    def write_result(self, spec: RunSpec, rows: "Rows", manifest: Mapping[str, Any]) -> None:
        """Writes a run's record; the manifest last. What an attempt that was killed in mid-write left is removed."""
        folder = self.path / "runs" / spec.run_id()
        for remains in folder.glob(f"{TEMPORARY}*"):
            remains.unlink(missing_ok=True)
        _write_text(folder / "spec.json", spec.model_dump_json(indent=1))
        _write_rows(folder / "rows.parquet", spec, rows)
        _write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))

    def adopt(self, files: Mapping[str, bytes]) -> None:
        """Writes what a node made in a sweep folder of its own; a card after its files, the manifest last."""
        for path in sorted(files, key=lambda path: (path.endswith(f"/{MANIFEST}"), path.endswith(f"/{CARD}"))):
            with atomic_write(self.path / path) as temporary:
                temporary.write_bytes(files[path])

    def collected(self, spec: RunSpec) -> Path:
        """Returns the log folder of what a buffered run collects, in a folder that can be a sweep's data set."""
        return self.path / "collected" / spec.run_id() / f"lineage-{spec.lineage:03d}"

    def write_failure(self, spec: RunSpec, reason: str, traceback: str) -> None:
        """Writes why a run has no result."""
        folder = self.path / "failed" / spec.run_id()
        _write_text(folder / "traceback.txt", traceback)
        failure = {"run_id": spec.run_id(), "reason": reason, "spec": spec.model_dump(mode="json")}
        _write_text(folder / FAILURE, json.dumps(failure, indent=1))


def _write_rows(path: Path, spec: RunSpec, rows: "Rows") -> None:
    import polars as pl

    frame = pl.DataFrame(
        {"update": rows.update, "metric": rows.metric, "item": rows.item, "value": rows.value},
        schema={"update": pl.Int32, "metric": pl.String, "item": pl.Int32, "value": pl.Float64},
    ).select(
        pl.lit(spec.run_id()).alias("run_id"),
        pl.lit(spec.dataset).alias("dataset"),
        pl.lit(spec.task).alias("task"),
        pl.lit(spec.lineage, pl.Int32).alias("lineage"),
        pl.lit(spec.level, pl.String).alias("level"),
        pl.lit(spec.replay_ratio, pl.Float64).alias("replay_ratio"),
        pl.lit(spec.baseline).alias("baseline"),
        pl.lit(json.dumps(spec.config, sort_keys=True)).alias("config"),
        pl.lit(spec.train.learning_rate, pl.Float64).alias("learning_rate"),
        pl.lit(spec.seed, pl.Int32).alias("seed"),
        "update",
        "metric",
        "item",
        "value",
    )
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; damage names the file."""
    try:
        value = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Remove the run's folder and run the sweep again."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds no JSON object. Remove the run's folder and run the sweep again.")
    return value


def missing_runs(folder: SweepFolder, runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Returns the runs that have neither a result nor a recorded failure."""
    ids = {run.run_id(): run for run in runs}
    return [run for run_id, run in ids.items() if not folder.is_complete(run_id) and not folder.has_failed(run_id)]
