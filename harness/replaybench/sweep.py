"""Carries out a sweep: makes the missing logs, runs the missing runs, records each as it ends."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from replaybench.buffered import train_buffered
from replaybench.collect import make_lineage, write_collected
from replaybench.diagnostics import Stopwatch
from replaybench.errors import DataError, RunFailed
from replaybench.executor import Done, Job, fitting_workers, run_jobs, this_place
from replaybench.executor_ray import Arrival, Cluster, run_jobs_ray
from replaybench.plan import Source, SweepSpec, check, lineage_folder, runs
from replaybench.policy import check_policy
from replaybench.provenance import checkout_commit, host_facts, versions
from replaybench.recipe import Recipe
from replaybench.record import SweepFolder, missing_runs
from replaybench.spec import RunSpec
from replaybench.store import has_card, is_url, open_log
from replaybench.store.files import locked
from replaybench.suites import CheckedSuite, make_suite
from replaybench.train import train

Listener = Callable[["Progress"], None]


class Progress(NamedTuple):
    """How far a stage is. `latest` names the job that just ended, if one has; `success` is its result, if it has one.

    A stage announces itself with nothing done. `doing`: what a job that is still running does.
    """

    stage: str
    done: int
    total: int
    latest: str = ""
    success: float | None = None
    error: str | None = None
    doing: str = ""


class Outcome(NamedTuple):
    """What a call of `run_sweep` did."""

    completed: int
    failed: int
    remaining: int


def make_data(sources: Sequence[Source], lineages: Sequence[int], workers: int, command: str, listen: Listener) -> None:
    """Makes every missing lineage of recipes; folders made elsewhere must be complete.

    A lineage that another process is making is waited for. All recipes are checked before the first one is begun.

    Raises:
        ConfigError: A suite or a policy cannot be made with a recipe's settings.
        DataError: A log folder is missing or belongs to another recipe, or a checkpoint is incomplete.
        RunFailed: A lineage could not be made; the others are kept.
    """
    missing = _missing_lineages(sources, lineages)
    for recipe in {place.recipe.name: place.recipe for place in missing}.values():
        _check_settings(recipe)
    jobs = [place.job(command) for place in missing]
    failures, num_done = [], 0
    told: dict[Path, str] = {}

    def tell() -> None:
        for place in missing:
            with suppress(FileNotFoundError):
                line = place.note.read_text(encoding="utf-8")
                if line and line != told.get(place.note):
                    told[place.note] = line
                    listen(Progress("logs", num_done, len(jobs), doing=line))

    if jobs:
        listen(Progress("logs", 0, len(jobs)))
    gpus_each = max((place.recipe.resources.num_gpus for place in missing), default=0)
    for done in run_jobs(_make_lineage_job, jobs, fitting_workers(workers, gpus_each), tell):
        num_done += 1
        reason = done.error[0] if done.error else None
        listen(Progress("logs", num_done, len(jobs), done.job.name, error=reason))
        if reason:
            failures.append(reason)
    if failures:
        raise RunFailed("\n".join(failures))


class _MissingLineage(NamedTuple):
    """A lineage that is to be made."""

    recipe: Recipe
    lineage: int
    folder: Path

    @property
    def note(self) -> Path:
        """The file in which its maker says what it is at."""
        return self.folder.with_name(f".{self.folder.name}.doing")

    def job(self, command: str) -> Job:
        """Returns the job that makes it."""
        payload = {
            "recipe": self.recipe.model_dump(),
            "lineage": self.lineage,
            "folder": str(self.folder),
            "command": command,
        }
        return Job(f"{self.recipe.name} lineage {self.lineage}", json.dumps(payload))


def _missing_lineages(sources: Sequence[Source], lineages: Sequence[int]) -> list[_MissingLineage]:
    """Returns what is to be made, lineage by lineage, and checks that what is there is of its recipe."""
    missing = []
    for lineage in lineages:
        for source in sources:
            folder = lineage_folder(source.folder, lineage)
            if has_card(folder):
                if source.recipe is not None:
                    _check_recipe(source.recipe, folder)
            elif source.recipe is None:
                raise DataError(
                    f"{folder}: there is no log of lineage {lineage}. Write it there, or leave the lineage out."
                )
            else:
                missing.append(_MissingLineage(source.recipe, lineage, Path(folder)))
    return missing


def _check_settings(recipe: Recipe) -> None:
    """Refuses settings of which the makers of a lineage would find out one after the other, and late."""
    suite = make_suite(recipe.suite, recipe.suite_settings)
    if isinstance(suite, CheckedSuite):
        suite.check(recipe.task)
    settings = suite.policy_settings(recipe.task) | recipe.policy.settings
    for changed in ({}, recipe.warm_start.policy_settings if recipe.warm_start else {}):
        check_policy(recipe.policy.kind, settings | changed)


def _check_recipe(recipe: Recipe, folder: Path | str) -> None:
    if open_log(folder).card.recipe_sha256 != recipe.digest():
        raise DataError(
            f"{folder}: was made by another version of recipe '{recipe.name}'. Remove the folder to make it again, "
            "or choose another --data folder."
        )


def _make_lineage_job(payload: str) -> str:
    """Makes one lineage in a worker."""
    job = json.loads(payload)
    place = _MissingLineage(Recipe.model_validate(job["recipe"]), job["lineage"], Path(job["folder"]))
    with locked(place.folder.with_name(f".{place.folder.name}.lock")):
        if has_card(place.folder):
            # Another sweep made it while this one waited.
            _check_recipe(place.recipe, place.folder)
        else:
            # Without a card these are the remains of an interrupted attempt.
            shutil.rmtree(place.folder, ignore_errors=True)
            try:
                make_lineage(place.recipe, place.lineage, place.folder, job["command"], partial(_note, place.note))
            finally:
                place.note.unlink(missing_ok=True)
    return ""


def _note(path: Path, line: str) -> None:
    # A disk that is full is met by the log itself.
    with suppress(OSError):
        path.write_text(line, encoding="utf-8")


def claim(folder: SweepFolder, spec: SweepSpec, found: list[Source]) -> list[RunSpec]:
    """Writes the plan into the folder and returns its runs; the data must exist.

    Raises:
        ConfigError: The folder belongs to another plan.
    """
    planned = runs(spec, found, check(spec, found))
    folder.claim(
        {
            "sweep": spec.model_dump(mode="json"),
            "runs": [run.model_dump(mode="json") for run in planned],
        }
    )
    return planned


def run_sweep(folder: SweepFolder, due: Sequence[RunSpec], workers: int | Cluster, listen: Listener) -> Outcome:
    """Runs what is due and records each result or failure; a failed run does not stop the others.

    Args:
        workers: Processes on this machine, or the Ray cluster that carries the runs out.

    Raises:
        DiskError: A result or failure could not be written. Its run stays due.
    """
    specs = {run.run_id(): run for run in due}
    folder.forget_all_running()
    if isinstance(workers, Cluster):
        jobs = [Job(name, _sent(run)) for name, run in specs.items()]
        ended = run_jobs_ray(_SentWork, jobs, workers, lambda arrival: _receive(folder, arrival))
    else:
        jobs = [Job(name, run.model_dump_json()) for name, run in specs.items()]
        ended = run_jobs(_Work(folder.path), jobs, workers)
    failed = 0
    if jobs:
        listen(Progress("runs", 0, len(jobs)))
    for number, done in enumerate(ended, start=1):
        folder.forget_running(done.job.name)
        if done.error is not None:
            failed += 1
            folder.write_failure(specs[done.job.name], *done.error)
        listen(_progress(number, len(jobs), done))
    return Outcome(len(jobs) - failed, failed, 0)


def _progress(number: int, total: int, done: Done) -> Progress:
    if done.error is not None:
        return Progress("runs", number, total, done.job.name, error=done.error[0])
    return Progress("runs", number, total, done.job.name, success=float(done.result))


class _Work:
    """Runs one run in a worker; carries only the output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, payload: str) -> str:
        spec = RunSpec.model_validate_json(payload)
        folder = SweepFolder(self.folder)
        folder.write_running(spec.run_id(), this_place()._asdict())
        return _carry_out(spec, spec, folder)


def _sent(run: RunSpec) -> str:
    """Returns what a node of a cluster is told: the run, and what it cannot see from there."""
    source = Path(run.baseline_path).read_text(encoding="utf-8") if run.baseline_path else None
    # A node's working folder is another one.
    data_folder = run.data_folder if is_url(run.data_folder) else str(Path(run.data_folder).resolve())
    return json.dumps({"run": run.model_dump(mode="json"), "data_folder": data_folder, "baseline_source": source})


class _SentWork:
    """Runs one run on a node of a cluster, into a folder there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, payload: str) -> str:
        sent = json.loads(payload)
        spec = RunSpec.model_validate(sent["run"])
        here = spec.model_copy(update={"data_folder": sent["data_folder"]})
        with tempfile.TemporaryDirectory(prefix="replaybench-") as own:
            if sent["baseline_source"] is not None:
                path = Path(own) / f"{spec.baseline}.py"
                path.write_text(sent["baseline_source"], encoding="utf-8", newline="")
                here = here.model_copy(update={"baseline_path": str(path)})
            return _carry_out(spec, here, SweepFolder(self.folder))


def _receive(folder: SweepFolder, arrival: Arrival) -> None:
    if arrival.place is not None:
        folder.write_running(arrival.job.name, arrival.place._asdict())
    else:
        folder.forget_running(arrival.job.name)
        folder.adopt(arrival.files)


def _carry_out(spec: RunSpec, here: RunSpec, folder: SweepFolder) -> str:
    """Runs `here`, which is `spec` with the paths of this machine, and records it as `spec`; returns its success."""
    started = time.time()
    clock = time.perf_counter()
    log = open_log(here.data_folder, here.card_sha256)
    result = train_buffered(here, log) if here.buffered else train(here, log)
    if result.collected:
        write_collected(folder.collected(spec), spec, log, result)
    manifest: dict[str, Any] = {
        "run_id": spec.run_id(),
        "started_unix_s": started,
        "wall_s": time.perf_counter() - clock,
        "seconds_per_environment_step": _per_item(result.rows.acting),
        "seconds_per_learner_sample": _per_item(result.rows.learning),
        "host": host_facts(),
        "commit": checkout_commit(),
        "versions": versions(log.card.versions.get("simulator", log.card.suite)),
    }
    folder.write_result(spec, result.rows, manifest)
    final = [v for m, v in zip(result.rows.metric, result.rows.value, strict=True) if m == "success"]
    return repr(final[-1])


def _per_item(stopwatch: Stopwatch) -> float | None:
    return stopwatch.seconds / stopwatch.count if stopwatch.count else None


def due_runs(folder: SweepFolder, planned: Sequence[RunSpec], only: str | None, limit: int | None) -> list[RunSpec]:
    """Returns the missing runs whose id contains `only`, at most `limit`."""
    due = [run for run in missing_runs(folder, planned) if only is None or only in run.run_id()]
    return due[:limit]


def renew_unread(folder: SweepFolder) -> None:
    """Makes the runs due again that failed because their data could not be read: the data may be whole by now."""
    for failure in folder.failures():
        if failure["reason"].startswith(DataError.__name__):
            folder.forget_failure(failure["run_id"])


def retry_failed(folder: SweepFolder) -> int:
    """Makes every failed run due again and returns how many there were."""
    failures = folder.failures()
    for failure in failures:
        folder.forget_failure(failure["run_id"])
    return len(failures)


def status(folder: SweepFolder, planned: Sequence[RunSpec]) -> list[dict[str, Any]]:
    """Returns a row for each baseline in the plan's order; `running` lists where its runs are, the rest are counts."""
    running = {note["run_id"]: note for note in folder.running()}
    ids: dict[str, list[str]] = {}
    for run in planned:
        ids.setdefault(run.baseline, []).append(run.run_id())
    rows = []
    for baseline, names in ids.items():
        complete, failed = sum(map(folder.is_complete, names)), sum(map(folder.has_failed, names))
        places = [running[name] for name in names if name in running]
        rows.append(
            {
                "baseline": baseline,
                "complete": complete,
                "failed": failed,
                "running": places,
                "missing": len(names) - complete - failed - len(places),
                "planned": len(names),
            }
        )
    return rows
