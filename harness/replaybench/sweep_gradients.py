"""Bias and variance of the gradient on a sweep's own logs, at its own settings, for its report."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from replaybench.analysis.relative_error import relative_errors
from replaybench.baseline import config_record, load_baseline
from replaybench.errors import ConfigError, RunFailed, unknown_name
from replaybench.executor import Job, fitting_workers, run_jobs
from replaybench.gradient_study import SCHEMA, StudySettings, gradient_study
from replaybench.record import SweepFolder, missing_runs
from replaybench.results import Sweep, read_sweep
from replaybench.spec import RunSpec, TrainSettings
from replaybench.store import atomic_write, open_log
from replaybench.store.files import reading
from replaybench.study import configs_along_knob
from replaybench.sweep import Listener, Progress

MAX_LISTED = 5


def gradients_path(folder: SweepFolder, *, along_knob: bool) -> Path:
    """Returns the file of a sweep's measured gradients, with the columns of `gradient_study.SCHEMA`."""
    return folder.path / ("gradients-along-knobs.parquet" if along_knob else "gradients.parquet")


def measure_due_gradients(folder: SweepFolder, workers: int, listen: Listener) -> None:
    """Measures what the sweep asks for and its folder lacks, once no run is missing."""
    sweep = read_sweep(folder)
    wanted = sweep.spec.gradients
    if wanted is None or gradients_path(folder, along_knob=False).exists() or missing_runs(folder, sweep.runs):
        return
    measure_gradients(folder, wanted.episodes, None, along_knob=False, workers=workers, listen=listen)


def measure_gradients(
    folder: SweepFolder,
    ns: Sequence[int],
    lineages: Sequence[int] | None,
    *,
    along_knob: bool,
    workers: int,
    listen: Listener,
) -> pl.DataFrame:
    """Measures every log, level and setting of the sweep, writes the table into its folder and returns it.

    Args:
        ns: Numbers of episodes that a gradient averages over.
        lineages: Only these; all by default.
        along_knob: Take each correction at its defaults and along its knob, not at the sweep's settings.

    Raises:
        ConfigError: The sweep has no such lineage, or does not train on logs.
        RunFailed: A log could not be measured; nothing is written.
    """
    sweep = read_sweep(folder)
    jobs = _jobs(sweep, ns, lineages, along_knob)
    parts, failures = [], []
    listen(Progress("gradients", 0, len(jobs)))
    ended = run_jobs(_measure_job, jobs, fitting_workers(workers, sweep.spec.resources.num_gpus))
    for number, done in enumerate(ended, start=1):
        reason = done.error[0] if done.error else None
        listen(Progress("gradients", number, len(jobs), done.job.name, error=reason))
        if reason:
            failures.append(f"{done.job.name}: {reason}")
        else:
            parts.append(pl.read_json(io.StringIO(done.result), schema=SCHEMA))
    if failures:
        more = f"\nand {len(failures) - MAX_LISTED} more" if len(failures) > MAX_LISTED else ""
        raise RunFailed("\n".join(failures[:MAX_LISTED]) + more)
    table = pl.concat(parts).sort("dataset", "lineage", "level", "n", "baseline", "config")
    with atomic_write(gradients_path(folder, along_knob=along_knob)) as temporary:
        table.write_parquet(temporary)
    return table


def read_errors(folder: SweepFolder, *, along_knob: bool) -> pl.DataFrame | None:
    """Returns the errors of `relative_errors` against the sweep's reference; None where nothing was measured.

    Along the knobs the reference is at its defaults, as all corrections are there.
    """
    path = gradients_path(folder, along_knob=along_knob)
    if not path.exists():
        return None
    sweep = read_sweep(folder)
    run = next(run for run in sweep.runs if run.baseline == sweep.spec.reference)
    config = run.config
    if along_knob:
        config = config_record(load_baseline(run.baseline_path or run.baseline).config())
    with reading(path):
        return relative_errors(pl.read_parquet(path), run.baseline, config)


def _jobs(sweep: Sweep, ns: Sequence[int], lineages: Sequence[int] | None, along_knob: bool) -> list[Job]:
    trained = [run for run in sweep.runs if run.level is not None and run.buffered is None]
    if not trained:
        raise ConfigError("The sweep trains on no log, so there is no gradient on one to measure.")
    known = {str(run.lineage) for run in trained}
    for lineage in lineages or ():
        if str(lineage) not in known:
            raise unknown_name("lineage of the sweep", str(lineage), known)
    methods = {(run.baseline, json.dumps(run.config, sort_keys=True)): run for run in trained}.values()
    shared = {
        "methods": [[run.baseline_path or run.baseline, run.config] for run in methods],
        "along_knob": along_knob,
        "ns": list(ns),
        "train": sweep.spec.train.model_dump(mode="json"),
    }
    places: dict[tuple[str, int, str], RunSpec] = {}
    for run in trained:
        if not lineages or run.lineage in lineages:
            places.setdefault((run.dataset, run.lineage, str(run.level)), run)
    return [
        Job(
            f"{dataset} lineage {lineage} {level}",
            json.dumps(shared | {"log": run.data_folder, "card": run.card_sha256, "dataset": dataset, "level": level}),
        )
        for (dataset, lineage, level), run in places.items()
    ]


def _measure_job(payload: str) -> str:
    job = json.loads(payload)
    named = [(load_baseline(name), config) for name, config in job["methods"]]
    if job["along_knob"]:
        baselines = {baseline.name: baseline for baseline, _ in named}.values()
        methods = [(baseline, config) for baseline in baselines for config in configs_along_knob(baseline)]
    else:
        methods = [(baseline, baseline.config(config)) for baseline, config in named]
    settings = StudySettings(ns=tuple(job["ns"]), train=TrainSettings.model_validate(job["train"]))
    table = gradient_study(open_log(job["log"], job["card"]), job["level"], methods, settings)
    return table.with_columns(dataset=pl.lit(job["dataset"])).write_json()
