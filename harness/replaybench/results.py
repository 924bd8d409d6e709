"""Reads the finished runs of a sweep into the tables that the report and other tools start from.

Rows come from runs that have a manifest; a planned run without one is missing, never zero. Where a sweep runs one
baseline at several settings, each setting is an arm with a label of its own, and the label stands in column `baseline`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from scipy import special

from replaybench.analysis.compare import CELL, RUN_SCHEMA, SETTING
from replaybench.errors import DataError
from replaybench.plan import SweepSpec
from replaybench.record import MANIFEST, SweepFolder, read_json
from replaybench.spec import RunSpec, validate
from replaybench.store import open_log

FINAL_METRIC = "success"

FACT_SCHEMA: dict[str, type[pl.DataType]] = {
    "dataset": pl.String,
    "task": pl.String,
    "lineage": pl.Int64,
    "level": pl.String,
    "lag_low": pl.Int64,
    "lag_high": pl.Int64,
    "branch_updates": pl.Int64,
    "metric": pl.String,
    "value": pl.Float64,
}

Arm = tuple[float, str]


class Sweep(NamedTuple):
    """A sweep's plan with its arms told apart.

    labels: the arm of every run, by run id. levels: its level, by run id; where a level is trained on at several sizes
    of log at one replay ratio, with the size. reference, control: the labels that the verdicts compare with; where the
    plan runs one of them at several settings, the first one planned.
    """

    spec: SweepSpec
    runs: tuple[RunSpec, ...]
    labels: dict[str, str]
    levels: dict[str, str | None]
    reference: str
    control: str


class LevelFacts(NamedTuple):
    """What the cards of the logs measured, in long form, and the log folders whose card is gone or another one."""

    frame: pl.DataFrame
    unread: list[str]


def read_sweep(folder: SweepFolder) -> Sweep:
    """Returns the plan of a sweep folder.

    Raises:
        ConfigError: The folder holds no sweep.
    """
    plan = folder.path / "sweep.json"
    return _read_sweep(folder.path, plan.stat().st_mtime_ns if plan.exists() else 0)


@lru_cache(maxsize=2)
def _read_sweep(path: Path, written: int) -> Sweep:
    """Reads a plan once: it never changes after it was claimed, and one of 10,000 runs takes seconds."""
    folder = SweepFolder(path)
    spec = validate(SweepSpec, folder.plan()["sweep"], str(path / "sweep.json"))
    runs = tuple({run.run_id(): run for run in folder.runs()}.values())
    labels = arm_labels(runs)
    return Sweep(
        spec,
        runs,
        labels,
        _level_labels(runs),
        _first_arm(runs, labels, spec.reference),
        _first_arm(runs, labels, spec.control),
    )


def _first_arm(runs: Sequence[RunSpec], labels: Mapping[str, str], baseline: str) -> str:
    return next((labels[run.run_id()] for run in runs if run.baseline == baseline), baseline)


def _level_labels(runs: Sequence[RunSpec]) -> dict[str, str | None]:
    cells = {(run.level, run.replay_ratio, run.train.updates) for run in runs if run.level and not run.buffered}
    if len({cell[:2] for cell in cells}) == len(cells):
        return {run.run_id(): run.level for run in runs}
    return {run.run_id(): run.level and f"{run.level}, {log_steps(run):g} steps" for run in runs}


def log_steps(run: RunSpec) -> float:
    """Returns the logged steps of a run under the logged protocol."""
    assert run.replay_ratio is not None
    return run.train.updates * run.train.batch_size / run.replay_ratio


def arm_labels(runs: Sequence[RunSpec]) -> dict[str, str]:
    """Returns each run's arm by run id: the baseline, or "baseline (field=value, lr 1e-4)" with what varies."""
    arms: dict[str, dict[Arm, dict[str, Any]]] = {}
    for run in runs:
        arms.setdefault(run.baseline, {})[_arm(run)] = run.config
    names = {(baseline, arm): name for baseline, found in arms.items() for arm, name in _arm_names(baseline, found)}
    return {run.run_id(): names[run.baseline, _arm(run)] for run in runs}


def _arm(run: RunSpec) -> Arm:
    return run.train.learning_rate, json.dumps(run.config, sort_keys=True)


def _arm_names(baseline: str, configs: Mapping[Arm, Mapping[str, Any]]) -> list[tuple[Arm, str]]:
    fields = sorted({field for config in configs.values() for field in config})
    varying = [field for field in fields if len({str(config.get(field)) for config in configs.values()}) > 1]
    rate_varies = len({rate for rate, _ in configs}) > 1
    names = []
    for arm, config in configs.items():
        parts = [f"{field}={config.get(field)}" for field in varying]
        parts += [f"lr {short_power(arm[0])}"] if rate_varies else []
        names.append((arm, f"{baseline} ({', '.join(parts)})" if parts else baseline))
    return names


def short_power(value: float) -> str:
    """Returns a positive number as mantissa and power of ten, such as 2.5e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


class Measured(NamedTuple):
    """What the finished runs measured, without per-item rows.

    runs: run_id, and the columns of `analysis.compare.RUN_SCHEMA` except value, with the labels of arm and level; a row
    a planned run. finished: the run ids that have a result. rows: run_id, update, metric, value.
    """

    runs: pl.DataFrame
    finished: frozenset[str]
    rows: pl.DataFrame


def read_measured(folder: SweepFolder) -> Measured:
    """Reads all records of a sweep once: opening thousands of small files costs more than filtering.

    Raises:
        ConfigError: The folder holds no sweep.
    """
    sweep = read_sweep(folder)
    runs = pl.DataFrame(
        [
            {"run_id": run.run_id(), "baseline": sweep.labels[run.run_id()], "level": sweep.levels[run.run_id()]}
            | {name: getattr(run, name) for name in ("dataset", "task", "lineage", "replay_ratio", "seed")}
            for run in sweep.runs
        ],
        schema={"run_id": pl.String, **{name: RUN_SCHEMA[name] for name in RUN_SCHEMA if name != "value"}},
    )
    finished = [run_id for run_id in sweep.labels if folder.is_complete(run_id)]
    types: dict[str, Any] = {"run_id": pl.Categorical, "update": pl.Int64, "metric": pl.Categorical}
    types["value"] = pl.Float64
    if not finished:
        return Measured(runs, frozenset(), pl.DataFrame(schema=types))
    records = pl.scan_parquet([folder.path / "runs" / run_id / "rows.parquet" for run_id in finished])
    rows = records.filter(pl.col("item") == -1).select(pl.col(name).cast(kind) for name, kind in types.items())
    return Measured(runs, frozenset(finished), rows.collect())


def final_success(measured: Measured) -> pl.DataFrame:
    """Returns the success after training of every planned run, null where the run has no result.

    Returns:
        The columns of `analysis.compare.RUN_SCHEMA`; a control has level and replay_ratio null.
    """
    last = metric_rows(measured, [FINAL_METRIC]).sort("update").group_by("run_id").agg(pl.col("value").last())
    return measured.runs.join(last, on="run_id", how="left", maintain_order="left").select(*RUN_SCHEMA)


def curves(measured: Measured, metrics: Sequence[str]) -> pl.DataFrame:
    """Returns metrics over updates of the finished runs, one row per run, update and metric, without per-item rows.

    Returns:
        dataset, task, lineage, level, replay_ratio, baseline, seed, update, metric, value.
    """
    return metric_rows(measured, metrics).drop("run_id").sort("metric", *CELL, "seed", "update")


def metric_rows(measured: Measured, metrics: Sequence[str]) -> pl.DataFrame:
    """Returns `curves` with the column run_id, in no order."""
    columns = ["run_id", "dataset", "task", "lineage", "level", "replay_ratio", "baseline", "seed"]
    rows = measured.rows.filter(pl.col("metric").is_in(list(metrics))).with_columns(
        pl.col("run_id", "metric").cast(pl.String)
    )
    return rows.join(measured.runs, on="run_id").select(*columns, "update", "metric", "value")


def lineage_means(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Averages the seeds of each lineage.

    Args:
        rows: `keys`, lineage, value.
    """
    by = [*keys, "lineage"]
    return rows.group_by(by).agg(pl.col("value").mean()).sort(by)


def lineage_intervals(means: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Estimates the mean over lineages with a 95 % t interval: `analysis.intervals.mean_t` for many groups at once.

    Args:
        means: `keys`, lineage, value; one row a lineage.

    Returns:
        keys, value, low, high, n; the bounds are null below two lineages or without any variance.
    """
    groups = means.group_by(keys).agg(
        pl.col("value").mean(), deviation=pl.col("value").std(), n=pl.len().cast(pl.Int64)
    )
    quantile = {n: float(special.stdtrit(n - 1, 0.975)) for n in groups["n"].unique() if n > 1}
    # Equal values that were averaged in different orders differ by rounding, which is no variance.
    has_variance = pl.col("deviation") > 1e-12 * pl.col("value").abs()
    half_width = (
        pl.col("n").replace_strict(quantile, default=None, return_dtype=pl.Float64)
        * pl.col("deviation")
        / pl.col("n").sqrt()
    )
    half_width = pl.when(has_variance).then(half_width)
    return (
        groups.with_columns(low=pl.col("value") - half_width, high=pl.col("value") + half_width)
        .select(*keys, "value", "low", "high", "n")
        .sort(keys)
    )


def level_facts(runs: Sequence[RunSpec]) -> LevelFacts:
    """Returns what the cards of the runs' logs measured on the levels of the sweep.

    A card that is not the one that the sweep was planned on is left out and reported.
    """
    levels = {run.level for run in runs if run.buffered is None}
    rows: list[dict[str, Any]] = []
    unread = []
    for (data_folder, digest), run in sorted({(run.data_folder, run.card_sha256): run for run in runs}.items()):
        try:
            card = open_log(data_folder, digest).card
        except DataError:
            unread.append(data_folder)
            continue
        for level, entry in card.levels.items():
            lag_low, lag_high = entry.lag_updates or (None, None)
            place = {"dataset": run.dataset, "task": run.task, "lineage": run.lineage, "level": level}
            lag = {"lag_low": lag_low, "lag_high": lag_high, "branch_updates": entry.branch_updates}
            rows += [
                {**place, **lag, "metric": metric, "value": float(value)}
                for metric, value in entry.measured.items()
                if level in levels and _is_number(value)
            ]
    return LevelFacts(pl.DataFrame(rows, schema=FACT_SCHEMA, orient="row"), unread)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def levels_by_distance(sweep: Sweep, facts: pl.DataFrame) -> list[str]:
    """Returns the levels in order of measured KL(mu||pi_start), averaged over data sets; as planned where unknown."""
    distance = dict(
        facts.filter(pl.col("metric") == "kl")
        .group_by("dataset", "level")
        .agg(pl.col("value").mean())
        .group_by("level")
        .agg(pl.col("value").mean())
        .iter_rows()
    )
    levels = list(dict.fromkeys(level for level in sweep.levels.values() if level is not None))
    if set(levels) - set(distance):
        return levels
    return sorted(levels, key=lambda level: distance[level])


def replay_ratios(measured: Measured) -> pl.DataFrame:
    """Returns the replay ratio that was asked for and what the finished runs realised.

    Returns:
        dataset, level, replay_ratio; realised_low, realised_high; steps_low, steps_high logged steps; num_runs.
    """
    realised, steps = "replay_ratio_realised", "replay_steps"
    rows = curves(measured, [realised, steps])
    value = {metric: pl.col("value").filter(pl.col("metric") == metric) for metric in (realised, steps)}
    return (
        rows.group_by("dataset", *SETTING)
        .agg(
            realised_low=value[realised].min(),
            realised_high=value[realised].max(),
            steps_low=value[steps].min().cast(pl.Int64),
            steps_high=value[steps].max().cast(pl.Int64),
            num_runs=value[realised].len().cast(pl.Int64),
        )
        .sort("dataset", *SETTING)
    )


def manifests(folder: SweepFolder) -> list[dict[str, Any]]:
    """Returns the manifests of the planned runs that have a result."""
    found = [folder.path / "runs" / run_id / MANIFEST for run_id in read_sweep(folder).labels]
    return [read_json(path) for path in found if path.is_file()]
