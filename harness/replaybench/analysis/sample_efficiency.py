"""How much data a correction needs: success against steps, area under the curve, steps to a threshold, speed-up.

A curve belongs to one lineage, and along it one thing varies, the environment steps; see `by_steps.curves_by_steps`.
Scores are on the fixed scale start policy = 0, expert = 1; every curve begins at (0, 0).
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import optimize, stats

from replaybench.analysis.compare import verdict
from replaybench.analysis.intervals import holm, p_value_t, stratified_mean_t

Floats = NDArray[np.float64]

CURVE_SCHEMA: dict[str, type[pl.DataType]] = {
    "design": pl.String,
    "level": pl.String,
    "baseline": pl.String,
    "dataset": pl.String,
    "lineage": pl.Int64,
    "steps": pl.Float64,
    "learner_samples": pl.Float64,
    "value": pl.Float64,
    "score": pl.Float64,
}
PLACE = ["design", "level"]
AREA_SCHEMA: dict[str, type[pl.DataType]] = {
    **dict.fromkeys((*PLACE, "baseline"), pl.String),
    **dict.fromkeys(("area", "low", "high", "difference", "difference_low", "difference_high"), pl.Float64),
    "n": pl.Int64,
    "p_holm": pl.Float64,
    "interval_method": pl.String,
    "verdict": pl.String,
}
THRESHOLDS = (0.25, 0.5)
# arXiv 2603.18464, figure 7: one pair of curves.
LITERATURE = 7.5


def areas(curves: pl.DataFrame) -> pl.DataFrame:
    """Returns the mean score over the steps of each curve: the area under it, by trapezoids, over its last step.

    Returns:
        design, level, baseline, dataset, lineage, area.
    """
    rows = [(*key, float(np.trapezoid(score, steps) / steps[-1])) for key, steps, score in _curves(curves)]
    return pl.DataFrame(rows, schema=[*PLACE, "baseline", "dataset", "lineage", "area"], orient="row")


def area_differences(found: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Compares the areas with the reference's, paired within the lineage.

    Returns:
        design, level, baseline; area, low, high: the mean with its 95 % t interval over lineages, stratified by task;
        difference, difference_low, difference_high, n, p_holm and verdict, adjusted over all rows; null for the
        reference itself.
    """
    rows: list[dict[str, Any]] = []
    for (design, level), group in sorted(found.group_by(PLACE)):
        wide = group.pivot(on="baseline", index=["dataset", "lineage"], values="area").sort("dataset", "lineage")
        for name in sorted(group["baseline"].unique()):
            mean = stratified_mean_t(_by_task(wide, pl.col(name)))
            row = {"design": design, "level": level, "baseline": name}
            row |= {"area": mean.estimate, "low": mean.low, "high": mean.high, "interval_method": mean.method}
            if name != reference and reference in wide.columns:
                differences = _by_task(wide, pl.col(name) - pl.col(reference))
                paired = stratified_mean_t(differences)
                row |= {"difference": paired.estimate, "difference_low": paired.low, "difference_high": paired.high}
                row |= {"n": paired.n, "p_holm": p_value_t(differences)}
            rows.append(row)
    compared = [row for row in rows if "p_holm" in row]
    for row, adjusted in zip(compared, holm([row["p_holm"] for row in compared]).tolist(), strict=True):
        row |= {"p_holm": adjusted, "verdict": verdict(row["difference"], adjusted)}
    return pl.DataFrame(rows, schema=AREA_SCHEMA).fill_nan(None)


def steps_to(curves: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """Returns the steps at which each curve reaches a score; a curve that never does is right-censored at its end.

    A noisy curve crosses too early, so the crossing is that of its isotonic regression, between points linear.

    Returns:
        design, level, baseline, dataset, lineage; steps: reached, or observed until; reached.
    """
    rows = []
    for key, steps, score in _curves(curves):
        rising = np.append(0.0, optimize.isotonic_regression(score[1:]).x)
        above = np.flatnonzero(rising >= threshold)
        if len(above) == 0:
            rows.append((*key, float(steps[-1]), False))
            continue
        last = int(above[0])
        before, after = rising[last - 1], rising[last]
        share = (threshold - before) / (after - before)
        rows.append((*key, float(steps[last - 1] + share * (steps[last] - steps[last - 1])), True))
    return pl.DataFrame(rows, schema=[*PLACE, "baseline", "dataset", "lineage", "steps", "reached"], orient="row")


def median_steps(reached: pl.DataFrame) -> pl.DataFrame:
    """Returns the median steps to the threshold by the Kaplan-Meier estimator, with its 95 % log-log interval.

    Args:
        reached: As `steps_to` returns it.

    Returns:
        design, level, baseline; median, low, high, null where the curves end before they could be told;
        num_reached of n lineages.
    """
    rows = []
    for (design, level, baseline), group in sorted(reached.group_by(*PLACE, "baseline")):
        ended = group.filter(~pl.col("reached"))["steps"].to_numpy()
        done = group.filter("reached")["steps"].to_numpy()
        survival = stats.ecdf(stats.CensoredData(uncensored=done, right=ended)).sf
        with warnings.catch_warnings():
            # Undefined before the first and after the last event; `_first_below` reads it as no bound.
            warnings.simplefilter("ignore", RuntimeWarning)
            bounds = survival.confidence_interval(method="log-log") if len(done) else None
        low, high = (
            (None, None)
            if bounds is None
            else (_first_below(bounds.low, len(done)), _first_below(bounds.high, len(done)))
        )
        rows.append((design, level, baseline, _first_below(survival, len(done)), low, high, len(done), len(group)))
    names = [*PLACE, "baseline", "median", "low", "high", "num_reached", "n"]
    kinds = [pl.String] * 3 + [pl.Float64] * 3 + [pl.Int64] * 2
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")


def _first_below(function: object, num_reached: int) -> float | None:
    """Returns where a survival function first is at most one half, or None where it never is."""
    quantiles = np.asarray(function.quantiles)  # type: ignore[attr-defined]
    below = np.flatnonzero(np.asarray(function.probabilities) <= 0.5)  # type: ignore[attr-defined]
    return float(quantiles[below[0]]) if num_reached and len(below) else None


class SpeedUp(NamedTuple):
    """A median ratio between bounds: `estimate_low` = `estimate_high` unless censoring hides it."""

    estimate_low: float
    estimate_high: float
    low: float
    high: float
    n: int


def speed_up(pairs: Sequence[tuple[float, float]]) -> SpeedUp:
    """Returns the median of ratios that are known to lie between two bounds each, with a 95 % interval.

    The interval inverts the sign test: it runs from the k-th lowest lower bound to the k-th highest upper bound, so it
    covers the median at least 95 % of the time whatever the distribution and the censoring. With fewer than six pairs
    no two-sided interval of that kind exists.

    Args:
        pairs: Lower and upper bound of each lineage's ratio; 0 and infinity where nothing is known.
    """
    lows, highs = (np.sort(np.array(column, dtype=np.float64)) for column in zip(*pairs, strict=True))
    n = len(lows)
    # The largest k with P(Binomial(n, 1/2) < k) at most 2.5 %.
    k = int(stats.binom.ppf(0.025, n, 0.5))
    low, high = (float(lows[k - 1]), float(highs[n - k])) if k >= 1 else (0.0, math.inf)
    return SpeedUp(float(_median(lows)), float(_median(highs)), low, high, n)


def _median(ordered: Floats) -> float:
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    # Ratios: the middle of two is their geometric mean, and still 0 or infinity where one of them is.
    return float(np.sqrt(ordered[middle - 1] * ordered[middle]))


def speed_ups(reached: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Returns how many times fewer steps each baseline needs than the reference, paired within the lineage.

    Where one of a pair never reaches the threshold, its ratio is known from one side only; where neither does, not at
    all.

    Returns:
        design, level, baseline; estimate_low, estimate_high, low, high; n pairs, num_open pairs known from one side or
        not at all; resolved: whether the interval excludes 1.
    """
    rows = []
    for (design, level), group in sorted(reached.group_by(PLACE)):
        theirs = group.filter(pl.col("baseline") == reference).drop("baseline")
        for name in sorted(set(group["baseline"]) - {reference}):
            pairs = group.filter(pl.col("baseline") == name).join(theirs, on=[*PLACE, "dataset", "lineage"])
            if pairs.is_empty():
                continue
            bounds = [_ratio_bounds(row) for row in pairs.iter_rows(named=True)]
            found = speed_up(bounds)
            is_open = sum(low != high for low, high in bounds)
            rows.append((design, level, name, *found, is_open, found.low > 1 or found.high < 1))
    names = [*PLACE, "baseline", *SpeedUp._fields, "num_open", "resolved"]
    kinds = [pl.String] * 3 + [pl.Float64] * 4 + [pl.Int64] * 2 + [pl.Boolean]
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")


def _ratio_bounds(row: Mapping[str, float]) -> tuple[float, float]:
    """Returns the bounds of (steps of the reference) / (steps of the baseline)."""
    ratio = row["steps_right"] / row["steps"]
    if row["reached"] and row["reached_right"]:
        return ratio, ratio
    if row["reached"]:
        return ratio, math.inf
    return (0.0, ratio) if row["reached_right"] else (0.0, math.inf)


def _curves(curves: pl.DataFrame) -> Iterator[tuple[tuple[object, ...], Floats, Floats]]:
    """Yields (design, level, baseline, dataset, lineage), steps and scores, beginning at (0, 0)."""
    for key, curve in sorted(curves.group_by(*PLACE, "baseline", "dataset", "lineage")):
        ordered = curve.group_by("steps").agg(pl.col("score").mean()).sort("steps")
        yield key, np.append(0.0, ordered["steps"].to_numpy()), np.append(0.0, ordered["score"].to_numpy())


def _by_task(wide: pl.DataFrame, values: pl.Expr) -> dict[str, Floats]:
    found = wide.select("dataset", value=values).drop_nulls()
    return {name: group["value"].to_numpy() for (name,), group in sorted(found.group_by("dataset"))}


def against_literature(row: Mapping[str, float]) -> str:
    """Returns the sentence that sets a row of `speed_ups` beside the published speed-up."""
    low, high = row["low"], row["high"]
    ends = f"[{low:.2g}, {high:.2g}]" if high < math.inf else f"[{low:.2g}, unbounded]"
    if row["estimate_low"] == row["estimate_high"] or math.isclose(row["estimate_low"], row["estimate_high"]):
        here = f"{row['estimate_low']:.2g}x"
    elif row["estimate_high"] < math.inf:
        here = f"between {row['estimate_low']:.2g}x and {row['estimate_high']:.2g}x"
    else:
        here = f"at least {row['estimate_low']:.2g}x" if row["estimate_low"] > 0 else "not to be told"
    return f"the {LITERATURE}x of the literature is {here} here, {ends}, n={row['n']}"
