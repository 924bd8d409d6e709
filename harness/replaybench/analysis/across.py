"""Compares the same cells of two sweeps: paired where both ran on the same logs, unpaired where they did not."""

import math
from collections.abc import Mapping

import polars as pl
from numpy.typing import ArrayLike
from scipy import special

from replaybench.analysis.compare import (
    BETTER,
    FAMILY_ALPHA,
    POOLED,
    SETTING,
    UNRESOLVED,
    WORSE,
    cell_means,
    paired_differences,
)
from replaybench.analysis.intervals import holm, stratified_mean

FIRST, SECOND = "first", "second"
ACROSS_SCHEMA: dict[str, type[pl.DataType]] = {
    "level": pl.String,
    "replay_ratio": pl.Float64,
    "baseline": pl.String,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "p_value": pl.Float64,
    "p_holm": pl.Float64,
    "verdict": pl.String,
    "pairing": pl.String,
}


def across_differences(first: pl.DataFrame, second: pl.DataFrame, *, is_paired: bool) -> pl.DataFrame:
    """Returns second minus first of every trained baseline and setting that both sweeps have, pooled over data sets.

    Args:
        first, second: One row a run, as `compare.paired_differences` takes it.
        is_paired: Both ran on the same logs, so that a lineage of one is that of the other. Else the lineages are
            independent: Welch's t interval of the difference of the means, each task with equal weight.

    Returns:
        ACROSS_SCHEMA; Holm's adjustment is over the whole table. n counts pairs, or lineages of both.
    """
    trained = [runs.filter(pl.col("level").is_not_null()) for runs in (first, second)]
    shared = trained[0].select(*SETTING, "baseline").unique().join(trained[1], on=[*SETTING, "baseline"], how="semi")
    rows = []
    for level, ratio, baseline in sorted(shared.unique().iter_rows()):
        chosen = (pl.col("level") == level) & (pl.col("replay_ratio") == ratio) & (pl.col("baseline") == baseline)
        sides = [runs.filter(chosen) for runs in trained]
        difference = _paired(*sides) if is_paired else _unpaired(*sides)
        rows.append({"level": level, "replay_ratio": ratio, "baseline": baseline} | difference)
    table = pl.DataFrame(rows, schema={k: v for k, v in ACROSS_SCHEMA.items() if k not in ("p_holm", "verdict")})
    return _with_verdicts(table)


def _paired(first: pl.DataFrame, second: pl.DataFrame) -> dict[str, object]:
    both = pl.concat([first.with_columns(baseline=pl.lit(FIRST)), second.with_columns(baseline=pl.lit(SECOND))])
    table = paired_differences(both, FIRST).filter(pl.col("dataset") == POOLED)
    row: dict[str, object] = table.select("estimate", "low", "high", "n", "p_value").row(0, named=True)
    return row | {"pairing": "paired"}


def _unpaired(first: pl.DataFrame, second: pl.DataFrame) -> dict[str, object]:
    a, b = (stratified_mean(_by_task(runs)) for runs in (first, second))
    estimate = b.estimate - a.estimate
    found: dict[str, object] = {"estimate": None if math.isnan(estimate) else estimate, "low": None, "high": None}
    found |= {"n": a.n + b.n, "p_value": None, "pairing": "unpaired"}
    parts = [(m.standard_error**2, m.degrees_of_freedom) for m in (a, b) if m.standard_error > 0]
    variance = sum(part for part, _ in parts)
    if math.isnan(a.standard_error + b.standard_error) or not variance > 0:
        return found
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    error = math.sqrt(variance)
    half_width = float(special.stdtrit(freedom, 0.975)) * error
    found |= {"low": estimate - half_width, "high": estimate + half_width}
    return found | {"p_value": float(2 * special.stdtr(freedom, -abs(estimate / error)))}


def _by_task(runs: pl.DataFrame) -> Mapping[str, ArrayLike]:
    return {
        f"{dataset}\n{task}": group["value"].to_numpy()
        for (dataset, task), group in sorted(cell_means(runs).group_by("dataset", "task"))
    }


def _with_verdicts(table: pl.DataFrame) -> pl.DataFrame:
    adjusted = holm([math.nan if p is None else p for p in table["p_value"]]).tolist()
    verdicts = [
        UNRESOLVED if not p < FAMILY_ALPHA else BETTER if estimate > 0 else WORSE
        for p, estimate in zip(adjusted, table["estimate"], strict=True)
    ]
    p_holm = pl.Series("p_holm", [None if math.isnan(p) else p for p in adjusted], dtype=pl.Float64)
    return table.with_columns(p_holm, verdict=pl.Series(verdicts, dtype=pl.String)).select(*ACROSS_SCHEMA)
