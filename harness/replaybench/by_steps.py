"""Success against environment steps and their price, from the records of a sweep: the start of sample efficiency."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from replaybench.analysis.sample_efficiency import CURVE_SCHEMA
from replaybench.results import FINAL_METRIC, Measured, Sweep, log_steps, metric_rows

# Points that make a curve.
MIN_SIZES = 3


def curves_by_steps(measured: Measured, sweep: Sweep, start: Mapping[str, float]) -> pl.DataFrame:
    """Returns success against environment steps, a point an evaluation, where a curve has at least three sizes.

    Under the buffered protocol the steps are those collected so far. Under the logged one they are the size of the log,
    and a curve holds either the updates fixed or the replay ratio, as its `design` says; never two things vary.

    Args:
        start: Mean success of the start policies of each data set, where every curve begins.

    Returns:
        The columns of `analysis.sample_efficiency.CURVE_SCHEMA`, and the run ids behind a row, one a line, as `runs`;
        learner_samples are those consumed so far.
    """
    points = points_by_steps(measured, sweep)
    if sweep.spec.buffered:
        points = points.filter(pl.col("steps").n_unique().over("level") >= MIN_SIZES)
    else:
        points = pl.concat(_designs(points))
    known = points.filter(pl.col("dataset").is_in(list(start)))
    base = pl.col("dataset").replace_strict(start, default=None, return_dtype=pl.Float64)
    scored = known.with_columns(score=(pl.col("value") - base) / (1 - base))
    means = scored.group_by(*[name for name in CURVE_SCHEMA if name not in ("value", "score")]).agg(
        pl.col("value", "score").mean(), runs=pl.col("run_id").str.join("\n")
    )
    columns = [pl.col(name).cast(dtype) for name, dtype in CURVE_SCHEMA.items()]
    return means.select(*columns, "runs").sort(list(CURVE_SCHEMA))


def points_by_steps(measured: Measured, sweep: Sweep) -> pl.DataFrame:
    """Returns success with the environment steps and learner samples that it took, a row an evaluation.

    Under the logged protocol only the evaluation after training counts, and the steps are those of the log.
    """
    return _buffered_points(measured, sweep) if sweep.spec.buffered else _logged_points(measured, sweep)


def _buffered_points(measured: Measured, sweep: Sweep) -> pl.DataFrame:
    rows = metric_rows(measured, [FINAL_METRIC, "env_steps"])
    wide = rows.filter(pl.col("level").is_not_null()).pivot(
        on="metric", index=[name for name in rows.columns if name not in ("metric", "value")], values="value"
    )
    if wide.is_empty():
        return pl.DataFrame(schema={**CURVE_SCHEMA, "run_id": pl.String})
    regimes = {name: sweep.spec.regime(name) for name in sweep.spec.regimes}
    batch_size = sweep.spec.train.batch_size
    ratio = {name: regime.value_updates * batch_size / regime.collect_steps for name, regime in regimes.items()}
    return wide.with_columns(
        design=pl.lit("collected while learning"),
        steps="env_steps",
        value=FINAL_METRIC,
        learner_samples=pl.col("env_steps") * pl.col("level").replace_strict(ratio, return_dtype=pl.Float64),
    )


def _logged_points(measured: Measured, sweep: Sweep) -> pl.DataFrame:
    trained = [run for run in sweep.runs if run.level is not None]
    sizes = pl.DataFrame(
        [(run.run_id(), run.level, log_steps(run), run.train.updates, run.train.batch_size) for run in trained],
        schema=["run_id", "log_level", "steps", "updates", "batch_size"],
        orient="row",
    )
    last = metric_rows(measured, [FINAL_METRIC]).sort("update").group_by("run_id").last()
    return last.join(sizes, on="run_id").with_columns(
        level="log_level", learner_samples=pl.col("updates") * pl.col("batch_size")
    )


def _designs(points: pl.DataFrame) -> list[pl.DataFrame]:
    """Returns the points of each kind of curve under the logged protocol; a point may belong to two."""
    kinds = (
        ("updates", "{} updates on every log", pl.Int64),
        ("replay_ratio", "replay ratio {} on every log", pl.Float64),
    )
    return [
        points.filter(pl.col("steps").n_unique().over("level", held) >= MIN_SIZES).with_columns(
            design=pl.format(text, pl.col(held).round(3).cast(kind))
        )
        for held, text, kind in kinds
    ]


def measured_collect_cost(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns what an environment step took in units of a learner sample, the median over runs that say so."""
    ratios = [
        record["seconds_per_environment_step"] / record["seconds_per_learner_sample"]
        for record in records
        if record.get("seconds_per_environment_step") and record.get("seconds_per_learner_sample")
    ]
    return float(np.median(ratios)) if ratios else None
