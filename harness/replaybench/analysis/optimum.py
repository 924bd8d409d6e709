"""Which setting of a correction is best, and which others might be: a confidence set for the best."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from replaybench.analysis.compare import LINEAGE, SETTING, cell_means
from replaybench.analysis.intervals import p_value_t, stratified_mean
from replaybench.errors import unknown_name

OPTIMUM_SCHEMA: dict[str, type[pl.DataType]] = {
    "level": pl.String,
    "replay_ratio": pl.Float64,
    "family": pl.String,
    "baseline": pl.String,
    "learning_rate": pl.Float64,
    "knob": pl.String,
    "knob_value": pl.Float64,
    "estimate": pl.Float64,
    "n": pl.Int64,
    "is_best": pl.Boolean,
    "may_be_best": pl.Boolean,
}


def optimum_sets(runs: pl.DataFrame, arms: pl.DataFrame, *, confidence: float = 0.95) -> pl.DataFrame:
    """Returns every arm of each family and setting, and whether it may be the family's best arm there.

    An arm leaves the set when another arm of its family is better by a paired one-sided t test at
    (1 - confidence) / (arms - 1), so that the truly best arm is in the set with at least that confidence: it could only
    be missing if one of arms - 1 comparisons went wrong. The set holds the settings that are not resolvably worse than
    the best; few lineages make it large.

    Args:
        runs: One row a run, as `compare.paired_differences` takes it; `baseline` names arms.
        arms: `sensitivity.ARM_SCHEMA`, one row an arm.

    Returns:
        OPTIMUM_SCHEMA; families with one arm are left out. n counts the arm's lineages.

    Source: Hsu 1981, multiple comparisons with the best, with Bonferroni's inequality for paired differences.
    """
    cells = cell_means(runs).filter(pl.col("level").is_not_null()).join(arms.drop_nulls("family"), on="baseline")
    rows = []
    for (level, ratio, family), group in sorted(cells.group_by(*SETTING, "family")):
        names = sorted(group["baseline"].unique())
        if len(names) < 2:
            continue
        plausible = may_be_best(group, names, confidence)
        means = {name: _mean(group.filter(pl.col("baseline") == name)) for name in names}
        best = max(names, key=lambda name: means[name][0])
        for name in names:
            arm = arms.row(by_predicate=pl.col("baseline") == name, named=True)
            place = (level, ratio, family, name, arm["learning_rate"], arm["knob"], arm["knob_value"])
            rows.append((*place, *means[name], name == best, name in plausible))
    return pl.DataFrame(rows, schema=OPTIMUM_SCHEMA, orient="row").sort(
        *SETTING, "family", "learning_rate", "knob_value"
    )


def may_be_best(cells: pl.DataFrame, names: Sequence[str], confidence: float = 0.95) -> set[str]:
    """Returns the names that no other one is resolved better than.

    Args:
        cells: dataset, task, lineage, baseline, value of one setting; one row a lineage and name.

    Raises:
        ConfigError: A name has no row.
    """
    for name in names:
        if name not in cells["baseline"]:
            raise unknown_name("arm", name, cells["baseline"].unique())
    wide = cells.pivot(on="baseline", index=LINEAGE, values="value").sort(LINEAGE)
    limit = (1 - confidence) / max(1, len(names) - 1)
    beaten = set()
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            strata = _differences(wide, first, second)
            # Two-sided p halved: the better side of the two tests.
            if strata and p_value_t(strata) / 2 < limit:
                beaten.add(second if stratified_mean(strata).estimate > 0 else first)
    return set(names) - beaten


def _differences(
    wide: pl.DataFrame, first: str, second: str
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    paired = wide.with_columns(difference=(pl.col(first) - pl.col(second)).round(12)).drop_nulls("difference")
    return {f"{key}": group["difference"].to_numpy() for key, group in paired.group_by("dataset", "task")}


def _mean(group: pl.DataFrame) -> tuple[float, int]:
    """Returns the mean over lineages, each task with equal weight, and the number of lineages."""
    by_task = group.group_by("dataset", "task").agg(pl.col("value").mean())
    return float(np.mean(by_task["value"].to_numpy())), len(group)
