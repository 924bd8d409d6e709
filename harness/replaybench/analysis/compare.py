"""Tables that compare baselines: seeds averaged within a lineage, baselines paired within it, tasks as strata.

Every function takes one row per run and returns a sorted frame that does not depend on the order of the rows.
Columns of a run: dataset, task, lineage, level, replay_ratio (nominal), baseline, seed, value. A failed run has value
null or no row. A control (a baseline that leaves the policy as it is) has level and replay_ratio null.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replaybench.analysis.intervals import (
    detectable_difference,
    holm,
    p_value_t,
    stratified_mean,
    stratified_mean_t,
)
from replaybench.errors import DataError, unknown_name

POOLED = "all"
BETTER, WORSE, UNRESOLVED = "better", "worse", "no difference resolved"
FAMILY_ALPHA = 0.05

RUN_SCHEMA: dict[str, type[pl.DataType]] = {
    "dataset": pl.String,
    "task": pl.String,
    "lineage": pl.Int64,
    "level": pl.String,
    "replay_ratio": pl.Float64,
    "baseline": pl.String,
    "seed": pl.Int64,
    "value": pl.Float64,
}
TASK = ["dataset", "task"]
LINEAGE = [*TASK, "lineage"]
SETTING = ["level", "replay_ratio"]
CELL = [*LINEAGE, *SETTING, "baseline"]

SUMMARY_SCHEMA: dict[str, type[pl.DataType]] = {
    "dataset": pl.String,
    "level": pl.String,
    "replay_ratio": pl.Float64,
    "baseline": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "num_missing": pl.Int64,
    "num_partial": pl.Int64,
    "interval_method": pl.String,
}
DIFFERENCE_SCHEMA: dict[str, type[pl.DataType]] = {
    **SUMMARY_SCHEMA,
    "reference": pl.String,
    "p_value": pl.Float64,
    "p_holm": pl.Float64,
    "verdict": pl.String,
    "minimum_detectable": pl.Float64,
    "minimum_detectable_doubled": pl.Float64,
}

# Values are of order 1. Unrounded, equal differences such as .3-.2 and .2-.1 would have a variance of 1e-34.
_DECIMALS = 12

_IS_CONTROL = pl.col("level").is_null()
_FLAWS = [
    (
        pl.any_horizontal(pl.col(*LINEAGE, "baseline", "seed").is_null()),
        "dataset, task, lineage, baseline and seed must be given.",
    ),
    (
        pl.col("replay_ratio").is_null() != _IS_CONTROL,
        "level and replay_ratio must both be null (a control) or both be given.",
    ),
    (
        _IS_CONTROL.n_unique().over("baseline") > 1,
        "this baseline has rows with a level and rows without; only a control has none, and it has none anywhere.",
    ),
    (~pl.col("value").is_finite(), "value is not finite; a failed run has value null."),
    (pl.struct(*CELL, "seed").is_duplicated(), "the run appears twice; keep one row a run."),
    (pl.col("dataset") == POOLED, f"'{POOLED}' names the pooled data sets; rename this one."),
]


class _Group(NamedTuple):
    """What one row of a table is made from: its lineages' values by task, and a count of what they lack."""

    dataset: str
    level: str | None
    replay_ratio: float | None
    baseline: str
    values_by_stratum: dict[str, NDArray[np.float64]]
    num_missing: int
    num_partial: int


def cell_means(runs: pl.DataFrame) -> pl.DataFrame:
    """Averages the seeds of each lineage.

    Returns:
        dataset, task, lineage, level, replay_ratio, baseline; value, the mean over the num_seeds runs that have one.
        A cell without any value has no row.

    Raises:
        DataError: A column is missing or has the wrong type, a run appears twice, or a value is not finite.
    """
    return _cell_means(_checked(runs))


def level_summary(runs: pl.DataFrame) -> pl.DataFrame:
    """Estimates each baseline's mean value at each level and replay ratio, with a 95 % t interval over lineages.

    Controls keep their null level. dataset "all" pools the data sets that have the setting, each task with equal
    weight; a task without values leaves the estimate null.

    Returns:
        dataset, level, replay_ratio, baseline; estimate, low, high (null where undefined); n lineages;
        num_missing lineages without a value; num_partial lineages averaged over fewer seeds than others have;
        interval_method. The bounds are not cut to the range of the values. "all" comes last.

    Raises:
        DataError: As `cell_means`.
    """
    checked = _checked(runs)
    cells = _with_partial(_cell_means(checked))
    null_setting = [pl.lit(None, dtype=RUN_SCHEMA[name]).alias(name) for name in SETTING]
    expected = pl.concat(
        [
            _lineage_settings(checked).join(_names(checked.filter(~_IS_CONTROL)), how="cross"),
            _lineages(checked).with_columns(null_setting).join(_names(checked.filter(_IS_CONTROL)), how="cross"),
        ]
    )
    observed = expected.join(cells, on=CELL, how="left", nulls_equal=True)
    return pl.DataFrame([_summary_row(group) for group in _groups(observed)], schema=SUMMARY_SCHEMA, orient="row")


def paired_differences(runs: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Compares every baseline with `reference`, paired within the lineage.

    A control is paired at every level and replay ratio. A lineage that lacks either side is left out of that pair.
    Every baseline has a row at every setting, also where all its runs failed. dataset "all" pools the data sets that
    have the setting, each task with equal weight; a task without pairs leaves the estimate null.

    Returns:
        dataset, level, replay_ratio, baseline; estimate, the mean difference to the reference, and its 95 % t interval
        low, high (null where undefined); n pairs; num_missing lineages left out; num_partial pairs averaged over fewer
        seeds than others have; interval_method; reference; p_value, two-sided; p_holm, adjusted over all rows of the
        dataset, so that a sweep of equal baselines declares a difference at most 5 % of the time however many settings
        it has; verdict at p_holm < .05, "better", "worse" or "no difference resolved";
        minimum_detectable, the true difference that the verdict finds with power .8 if it is the table's only one:
        for the standard error at hand, at .05 / (number of the dataset's comparisons), which is Holm's first step;
        minimum_detectable_doubled, the same if each task had twice as many lineages of the same spread.
        The interval is that of one comparison: it can exclude 0 where the verdict resolves nothing. "all" comes last.

    Raises:
        ConfigError: `reference` is not among the baselines.
        DataError: As `cell_means`.
    """
    checked = _checked(runs)
    names = _names(checked)
    if reference not in names["baseline"]:
        raise unknown_name("reference baseline", reference, names["baseline"])
    cells = _spread_controls(_with_partial(_cell_means(checked)), checked)
    reference_cells = cells.filter(pl.col("baseline") == reference).drop("baseline")
    pairs = (
        _lineage_settings(checked)
        .join(names.filter(pl.col("baseline") != reference), how="cross")
        .join(cells, on=CELL, how="left")
        .join(reference_cells, on=[*LINEAGE, *SETTING], how="left", suffix="_reference")
        .with_columns(
            value=(pl.col("value") - pl.col("value_reference")).round(_DECIMALS),
            is_partial=pl.col("is_partial") | pl.col("is_partial_reference"),
        )
    )
    rows: list[dict[str, Any]] = []
    for _, table in groupby(_groups(pairs), key=lambda group: group.dataset):
        rows += _difference_rows(list(table), reference)
    return pl.DataFrame(rows, schema=DIFFERENCE_SCHEMA, orient="row")


def improvement_over_start(runs: pl.DataFrame, control: str) -> pl.DataFrame:
    """Compares every baseline with the start policy: `paired_differences` to the control, with the same columns.

    Args:
        control: The baseline that leaves the start policy as it is.

    Raises:
        ConfigError: `control` is unknown, or it updates the policy.
        DataError: As `cell_means`.
    """
    controls = _names(_checked(runs).filter(_IS_CONTROL))["baseline"]
    if control not in controls:
        raise unknown_name("control", control, controls)
    return paired_differences(runs, control)


def _checked(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the columns of a run with their types, in a fixed order of rows, or refuses them."""
    for name in RUN_SCHEMA:
        if name not in runs.columns:
            raise DataError(f"runs: column '{name}' is missing. Expected: {', '.join(RUN_SCHEMA)}.")
    try:
        checked = runs.select(pl.col(name).cast(dtype) for name, dtype in RUN_SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"runs: a column has the wrong type: {error} Expected: {RUN_SCHEMA}.") from error
    for flaw, message in _FLAWS:
        broken = checked.filter(flaw)
        if len(broken):
            raise DataError(f"runs, row {broken.row(0, named=True)}: {message}")
    # The order of a sum changes its last digit; in sorted rows the tables are the same to the bit.
    return checked.sort(*CELL, "seed")


def _cell_means(checked: pl.DataFrame) -> pl.DataFrame:
    completed = checked.filter(pl.col("value").is_not_null())
    means = completed.group_by(CELL, maintain_order=True).agg(pl.col("value").mean(), num_seeds=pl.len().cast(pl.Int64))
    return means.sort(CELL)


def _with_partial(cells: pl.DataFrame) -> pl.DataFrame:
    """Marks the cells with fewer seeds than the fullest one; controls, which need fewer runs, among themselves."""
    most_seeds = pl.col("num_seeds").max().over(_IS_CONTROL)
    return cells.select(*CELL, "value", is_partial=pl.col("num_seeds") < most_seeds)


def _names(checked: pl.DataFrame) -> pl.DataFrame:
    return checked.select("baseline").unique().sort("baseline")


def _lineages(checked: pl.DataFrame) -> pl.DataFrame:
    return checked.select(LINEAGE).unique()


def _task_settings(checked: pl.DataFrame) -> pl.DataFrame:
    return checked.filter(~_IS_CONTROL).select(*TASK, *SETTING).unique()


def _lineage_settings(checked: pl.DataFrame) -> pl.DataFrame:
    """Every lineage at every setting of its task: what a sweep without failures has for each baseline."""
    return _lineages(checked).join(_task_settings(checked), on=TASK).select(*LINEAGE, *SETTING)


def _spread_controls(cells: pl.DataFrame, checked: pl.DataFrame) -> pl.DataFrame:
    """Copies each control to every setting of its task."""
    controls = cells.filter(_IS_CONTROL).drop(SETTING).join(_task_settings(checked), on=TASK)
    return pl.concat([cells.filter(~_IS_CONTROL), controls.select(cells.columns)])


def _groups(observed: pl.DataFrame) -> Iterator[_Group]:
    """Yields the rows of a table in their order, the pooled ones last.

    Args:
        observed: CELL, value (null where missing), is_partial; one row for each expected lineage.
    """
    # A line break keeps two tasks apart whatever their names contain.
    strata = observed.with_columns(stratum=pl.concat_str(TASK, separator="\n"), is_pooled=False)
    pooled = strata.with_columns(dataset=pl.lit(POOLED), is_pooled=True)
    key = ["is_pooled", "dataset", *SETTING, "baseline"]
    has_value = pl.col("value").is_not_null()
    grouped = (
        pl.concat([strata, pooled])
        .sort(*key, "stratum", "lineage")
        .group_by(key, maintain_order=True)
        .agg("stratum", "value", num_partial=(pl.col("is_partial") & has_value).sum())
    )
    for row in grouped.iter_rows(named=True):
        yield _Group(
            dataset=row["dataset"],
            level=row["level"],
            replay_ratio=row["replay_ratio"],
            baseline=row["baseline"],
            values_by_stratum=_by_stratum(row["stratum"], row["value"]),
            num_missing=row["value"].count(None),
            num_partial=row["num_partial"],
        )


def _by_stratum(strata: Sequence[str], values: Sequence[float | None]) -> dict[str, NDArray[np.float64]]:
    """Returns the values that exist, by stratum; a stratum without any stays, empty."""
    found: dict[str, list[float]] = {stratum: [] for stratum in strata}
    for stratum, value in zip(strata, values, strict=True):
        if value is not None:
            found[stratum].append(value)
    return {stratum: np.array(present, dtype=np.float64) for stratum, present in found.items()}


def _summary_row(group: _Group) -> dict[str, Any]:
    interval = stratified_mean_t(group.values_by_stratum)
    return {
        "dataset": group.dataset,
        "level": group.level,
        "replay_ratio": group.replay_ratio,
        "baseline": group.baseline,
        "estimate": _or_null(interval.estimate),
        "low": _or_null(interval.low),
        "high": _or_null(interval.high),
        "n": interval.n,
        "num_missing": group.num_missing,
        "num_partial": group.num_partial,
        "interval_method": interval.method,
    }


def _difference_rows(table: Sequence[_Group], reference: str) -> list[dict[str, Any]]:
    """Tests all comparisons of one dataset, a family for Holm's adjustment."""
    p_values = [p_value_t(group.values_by_stratum) for group in table]
    rows = []
    for group, p_value, p_holm in zip(table, p_values, holm(p_values).tolist(), strict=True):
        mean = stratified_mean(group.values_by_stratum)
        alpha = FAMILY_ALPHA / len(table)
        detectable = detectable_difference(mean.standard_error, mean.degrees_of_freedom, alpha)
        # K tasks of m lineages have K (m - 1) degrees of freedom; of 2 m, K (2 m - 1).
        more_freedom = 2 * mean.degrees_of_freedom + len(group.values_by_stratum)
        doubled = detectable_difference(mean.standard_error / math.sqrt(2), more_freedom, alpha)
        rows.append(
            _summary_row(group)
            | {
                "reference": reference,
                "p_value": _or_null(p_value),
                "p_holm": _or_null(p_holm),
                "verdict": verdict(mean.estimate, p_holm),
                "minimum_detectable": _or_null(detectable),
                "minimum_detectable_doubled": _or_null(doubled),
            }
        )
    return rows


def verdict(difference: float, p_holm: float) -> str:
    """Returns what an adjusted p value says of a difference."""
    # An undefined p value is NaN and resolves nothing: every comparison with NaN is false.
    if not p_holm < FAMILY_ALPHA:
        return UNRESOLVED
    return BETTER if difference > 0 else WORSE


def _or_null(value: float) -> float | None:
    """Tables mark what is undefined by null; NaN would sort as the largest number and is no JSON."""
    return None if math.isnan(value) else value
