"""Carries out a sweep: makes the missing logs, runs the missing runs, records each as it ends."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from replaybench.buffered import train_buffered
from replaybench.collect import make_lineage, write_collected
from replaybench.diagnostics import Stopwatch
from replaybench.errors import DataError, RunFailed
from replaybench.executor import Done, Job, run_jobs
from replaybench.plan import Source, SweepSpec, check, lineage_folder, runs
from replaybench.provenance import checkout_commit, host_facts, versions
from replaybench.recipe import Recipe
from replaybench.record import SweepFolder, missing_runs
from replaybench.spec import RunSpec
from replaybench.store import open_log, read_card
from replaybench.store.card import FILE_NAME
from replaybench.store.files import locked
from replaybench.train import train

Listener = Callable[["Progress"], None]


class Progress(NamedTuple):
    """How far a stage is. `latest` names the job that just ended, if one has; `success` is its result, if it has one.

    A stage announces itself with nothing done.
    """

    stage: str
    done: int
    total: int
    latest: str = ""
    success: float | None = None
    error: str | None = None


class Outcome(NamedTuple):
    """What a call of `run_sweep` did."""

    completed: int
    failed: int
    remaining: int


def make_data(sources: Sequence[Source], lineages: Sequence[int], workers: int, command: str, listen: Listener) -> None:
    """Makes every missing lineage of recipes; folders made elsewhere must be complete.

    A lineage that another process is making is waited for.

    Raises:
        DataError: A log folder is missing or belongs to another recipe.
        RunFailed: A lineage could not be made; the others are kept.
    """
    jobs = []
    for lineage in lineages:
        for source in sources:
            folder = lineage_folder(source.folder, lineage)
            if (folder / FILE_NAME).exists():
                if source.recipe is not None:
                    _check_recipe(source.recipe, folder)
            elif source.recipe is None:
                raise DataError(
                    f"{folder}: there is no log of lineage {lineage}. Write it there, or leave the lineage out."
                )
            else:
                payload = {
                    "recipe": source.recipe.model_dump(),
                    "lineage": lineage,
                    "folder": str(folder),
                    "command": command,
                }
                jobs.append(Job(f"{source.name} lineage {lineage}", json.dumps(payload)))
    failures = []
    if jobs:
        listen(Progress("logs", 0, len(jobs)))
    for number, done in enumerate(run_jobs(_make_lineage_job, jobs, workers), start=1):
        reason = done.error[0] if done.error else None
        listen(Progress("logs", number, len(jobs), done.job.name, error=reason))
        if reason:
            failures.append(reason)
    if failures:
        raise RunFailed("\n".join(failures))


def _check_recipe(recipe: Recipe, folder: Path) -> None:
    if read_card(folder).recipe_sha256 != recipe.digest():
        raise DataError(
            f"{folder}: was made by another version of recipe '{recipe.name}'. Remove the folder to make it again, "
            "or choose another --data folder."
        )


def _make_lineage_job(payload: str) -> str:
    job = json.loads(payload)
    folder = Path(job["folder"])
    recipe = Recipe.model_validate(job["recipe"])
    with locked(folder.with_name(f".{folder.name}.lock")):
        if (folder / FILE_NAME).exists():
            # Another sweep made it while this one waited.
            _check_recipe(recipe, folder)
        else:
            # Without a card these are the remains of an interrupted attempt.
            shutil.rmtree(folder, ignore_errors=True)
            make_lineage(recipe, job["lineage"], folder, job["command"], lambda line: None)
    return ""


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


def run_sweep(folder: SweepFolder, due: Sequence[RunSpec], workers: int, listen: Listener) -> Outcome:
    """Runs what is due and records each result or failure; a failed run does not stop the others.

    Raises:
        DiskError: A result or failure could not be written. Its run stays due.
    """
    jobs = [Job(run.run_id(), run.model_dump_json()) for run in due]
    specs = {job.name: run for job, run in zip(jobs, due, strict=True)}
    failed = 0
    if jobs:
        listen(Progress("runs", 0, len(jobs)))
    for number, done in enumerate(run_jobs(_Work(folder.path), jobs, workers), start=1):
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
        started = time.time()
        clock = time.perf_counter()
        log = open_log(Path(spec.data_folder))
        if log.digest != spec.card_sha256:
            raise DataError(f"{spec.data_folder}: its card changed since the sweep was planned. Start a new sweep.")
        result = train_buffered(spec, log) if spec.buffered else train(spec, log)
        if result.collected:
            write_collected(SweepFolder(self.folder).collected(spec), spec, log, result)
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
        SweepFolder(self.folder).write_result(spec, result.rows, manifest)
        final = [v for m, v in zip(result.rows.metric, result.rows.value, strict=True) if m == "success"]
        return repr(final[-1])


def _per_item(stopwatch: Stopwatch) -> float | None:
    return stopwatch.seconds / stopwatch.count if stopwatch.count else None


def due_runs(folder: SweepFolder, planned: Sequence[RunSpec], only: str | None, limit: int | None) -> list[RunSpec]:
    """Returns the missing runs whose id contains `only`, at most `limit`."""
    due = [run for run in missing_runs(folder, planned) if only is None or only in run.run_id()]
    return due[:limit]


def retry_failed(folder: SweepFolder) -> int:
    """Makes every failed run due again and returns how many there were."""
    failures = folder.failures()
    for failure in failures:
        folder.forget_failure(failure["run_id"])
    return len(failures)


def iterate_status(folder: SweepFolder, planned: Sequence[RunSpec]) -> Iterator[tuple[str, int, int, int]]:
    """Yields (baseline, complete, failed, planned) in the plan's order of baselines."""
    for baseline in dict.fromkeys(run.baseline for run in planned):
        ids = [run.run_id() for run in planned if run.baseline == baseline]
        yield baseline, sum(map(folder.is_complete, ids)), sum(map(folder.has_failed, ids)), len(ids)
