"""Aggregates over tasks and lineages of scores with a fixed reference: start policy = 0, expert = 1.

Min-max scores over the methods present change when a method is added; these do not. A table of scores maps each task
to its lineages' scores. Below `BOOTSTRAP_UNITS` lineages a percentile bootstrap covers too little (86 % at n = 6), so
intervals are then of Student's kind.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import special

from replaybench.analysis.compare import SETTING, cell_means
from replaybench.analysis.intervals import (
    UNDEFINED,
    ZERO_VARIANCE,
    Interval,
    interquartile_mean,
    probability_of_improvement,
    stratified_mean_t,
    wilson,
)
from replaybench.errors import DataError

Floats = NDArray[np.float64]
Scores = Mapping[str, ArrayLike]

EXPERT = 1.0
BOOTSTRAP_UNITS = 20
RESAMPLES = 50_000

AGGREGATE_SCHEMA: dict[str, type[pl.DataType]] = {
    "level": pl.String,
    "replay_ratio": pl.Float64,
    "baseline": pl.String,
    "aggregate": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "interval_method": pl.String,
}
PROFILE_SCHEMA: dict[str, type[pl.DataType]] = {
    "level": pl.String,
    "replay_ratio": pl.Float64,
    "baseline": pl.String,
    "score": pl.Float64,
    "share_above": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
}


def normalised_scores(runs: pl.DataFrame, control: str, expert: float = EXPERT) -> pl.DataFrame:
    """Returns (success - start) / (expert - start) of every trained lineage, with the task's mean start success.

    Args:
        runs: One row a run, as `compare.paired_differences` takes it.
        control: The baseline that leaves the start policy as it is.

    Returns:
        level, replay_ratio, baseline, dataset, lineage, score.

    Raises:
        DataError: A task has no start success, or it is the expert's.
    """
    cells = cell_means(runs)
    start = cells.filter(pl.col("baseline") == control).group_by("dataset").agg(start=pl.col("value").mean())
    trained = cells.filter(pl.col("level").is_not_null()).join(start, on="dataset", how="left")
    broken = trained.filter(pl.col("start").is_null() | (pl.col("start") == expert))
    if len(broken):
        raise DataError(
            f"Data set '{broken['dataset'][0]}': scores need the start policy's success, and below the expert's "
            f"{expert:g}. Run the control '{control}' on it."
        )
    score = (pl.col("value") - pl.col("start")) / (expert - pl.col("start"))
    return trained.select(*SETTING, "baseline", "dataset", "lineage", score=score)


def aggregates(scores: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Returns interquartile mean, optimality gap and probability of improvement of every baseline and setting.

    Args:
        scores: As `normalised_scores` returns them.
        reference: The baseline that the probability of improvement compares with.

    Returns:
        AGGREGATE_SCHEMA; aggregate is "iqm", "optimality_gap" or "probability_of_improvement".
    """
    rows = []
    for (level, ratio), setting in sorted(scores.group_by(SETTING)):
        tables = {name: _by_task(setting.filter(pl.col("baseline") == name)) for name in setting["baseline"].unique()}
        for name in sorted(tables):
            found = {"iqm": iqm(tables[name]), "optimality_gap": optimality_gap(tables[name])}
            if name != reference and reference in tables:
                found["probability_of_improvement"] = improvement(tables[name], tables[reference])
            rows += [(level, ratio, name, aggregate, *_nulls(interval)) for aggregate, interval in found.items()]
    return pl.DataFrame(rows, schema=AGGREGATE_SCHEMA, orient="row")


def _by_task(setting: pl.DataFrame) -> dict[str, Floats]:
    return {
        dataset: group.sort("lineage")["score"].to_numpy() for (dataset,), group in sorted(setting.group_by("dataset"))
    }


def _nulls(interval: Interval) -> tuple[float | None, float | None, float | None, int, str]:
    estimate, low, high = (None if math.isnan(value) else value for value in interval[:3])
    return estimate, low, high, interval.n, interval.method


def iqm(scores: Scores, rng: np.random.Generator | None = None) -> Interval:
    """Returns the interquartile mean over all scores, pooled over tasks.

    Below 20 scores the interval is that of a trimmed mean: Student's t with h - 1 degrees of freedom and the standard
    error s_w / ((1 - 2 g / n) sqrt n): s_w is the winsorised deviation, g = floor(n / 4) the number cut at each
    end, h = n - 2 g.
    From 20 on it is the stratified percentile bootstrap.

    Source: Agarwal et al. 2021, arXiv 2108.13264 (IQM); Tukey and McLaughlin 1963 (interval).
    """
    pooled = _pooled(scores)
    if len(pooled) >= BOOTSTRAP_UNITS:
        return stratified_bootstrap(scores, interquartile_means, rng or np.random.default_rng(0))
    estimate, n = interquartile_mean(pooled), len(pooled)
    cut = n // 4
    kept = n - 2 * cut
    if kept < 2:
        return Interval(estimate, math.nan, math.nan, n, UNDEFINED)
    winsorised = np.clip(np.sort(pooled), np.sort(pooled)[cut], np.sort(pooled)[n - 1 - cut])
    deviation = float(winsorised.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, float(np.abs(pooled).max())):
        return Interval(estimate, math.nan, math.nan, n, ZERO_VARIANCE)
    half_width = float(special.stdtrit(kept - 1, 0.975)) * deviation / ((1 - 2 * cut / n) * math.sqrt(n))
    return Interval(estimate, estimate - half_width, estimate + half_width, n, "trimmed t")


def optimality_gap(scores: Scores) -> Interval:
    """Returns the mean of max(0, 1 - score), the distance to the expert, with a t interval over lineages by task.

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    """
    return stratified_mean_t({task: np.maximum(0.0, 1 - np.asarray(values)) for task, values in scores.items()})


def improvement(scores: Scores, reference: Scores) -> Interval:
    """Returns the probability that a lineage of the method beats one of the reference, averaged over tasks.

    P = mean over tasks of P(X > Y) + P(X = Y) / 2, unpaired. Interval: jackknife over lineages (left out on both sides,
    which are paired), Student's t with as many degrees of freedom as lineages less tasks; cut to [0, 1].

    Source: Agarwal et al. 2021, arXiv 2108.13264; Arvesen 1969 (jackknife of U statistics).

    Raises:
        DataError: The tables are not of the same tasks and lineages.
    """
    x = {task: np.asarray(values, dtype=np.float64) for task, values in scores.items()}
    y = {task: np.asarray(values, dtype=np.float64) for task, values in reference.items()}
    if {task: len(values) for task, values in x.items()} != {task: len(values) for task, values in y.items()}:
        return Interval(
            float(np.mean([probability_of_improvement(x[task], y[task]) for task in x if task in y])),
            math.nan,
            math.nan,
            sum(map(len, x.values())),
            UNDEFINED,
        )
    estimate = float(np.mean([probability_of_improvement(x[task], y[task]) for task in x]))
    n = sum(map(len, x.values()))
    if min(map(len, x.values()), default=0) < 2:
        return Interval(estimate, math.nan, math.nan, n, UNDEFINED)
    variance = 0.0
    for task in x:
        size = len(x[task])
        left = np.array([probability_of_improvement(np.delete(x[task], i), np.delete(y[task], i)) for i in range(size)])
        variance += (size - 1) / size * float(((left - left.mean()) ** 2).sum()) / len(x) ** 2
    if variance <= 1e-24:
        return Interval(estimate, math.nan, math.nan, n, ZERO_VARIANCE)
    half_width = float(special.stdtrit(n - len(x), 0.975)) * math.sqrt(variance)
    return Interval(estimate, max(0.0, estimate - half_width), min(1.0, estimate + half_width), n, "jackknife t")


def performance_profile(scores: pl.DataFrame, grid: Sequence[float]) -> pl.DataFrame:
    """Returns the share of lineages whose score is above each value of the grid, with Wilson's interval at each point.

    Source: Dolan and More 2002; Agarwal et al. 2021, arXiv 2108.13264.
    """
    rows = []
    for (level, ratio, baseline), group in sorted(scores.group_by([*SETTING, "baseline"])):
        values = group["score"].to_numpy()
        for tau in grid:
            above = int((values > tau).sum())
            interval = wilson(above, len(values))
            rows.append((level, ratio, baseline, tau, above / len(values), interval.low, interval.high, len(values)))
    return pl.DataFrame(rows, schema=PROFILE_SCHEMA, orient="row")


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[[Floats], Floats],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Returns a statistic of all scores with its percentile interval; lineages are redrawn within each task.

    Args:
        statistic: Maps resamples [R, n] to values [R].

    Raises:
        DataError: Fewer than 20 scores, where this interval covers too little.
    """
    strata = [np.asarray(scores[task], dtype=np.float64) for task in sorted(scores)]
    pooled = np.concatenate(strata)
    if len(pooled) < BOOTSTRAP_UNITS:
        raise DataError(f"A percentile bootstrap needs {BOOTSTRAP_UNITS} lineages, there are {len(pooled)}.")
    draws = [values[rng.integers(len(values), size=(resamples, len(values)))] for values in strata]
    values = statistic(np.concatenate(draws, axis=1))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(pooled[None])[0]), float(low), float(high), len(pooled), "stratified bootstrap")


def interquartile_means(scores: Floats) -> Floats:
    """Returns the interquartile mean of each row of [R, n]."""
    n = scores.shape[1]
    cut = n // 4
    if cut:
        scores = np.partition(scores, (cut - 1, n - cut), axis=1)
    return np.asarray(scores[:, cut : n - cut].mean(axis=1))


def _pooled(scores: Scores) -> Floats:
    return np.concatenate([np.asarray(scores[task], dtype=np.float64) for task in sorted(scores)])
