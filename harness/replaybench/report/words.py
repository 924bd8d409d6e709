"""How numbers, intervals and settings are put into words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from replaybench.analysis.compare import POOLED


def signed(value: float) -> str:
    """Returns a difference with its sign and two decimals; what rounds to nothing is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def plain(value: float) -> str:
    """Returns a share with two decimals."""
    return f"{round(value, 2) + 0.0:.2f}"


def with_interval(row: Mapping[str, Any], show: Callable[[float], str] = signed) -> str:
    """Returns "+0.05 [-0.02, +0.12]", or why there is no estimate or no interval."""
    if row["estimate"] is None:
        return "not measured"
    if row["low"] is None:
        return f"{show(row['estimate'])} [{row['interval_method']}]"
    return f"{show(row['estimate'])} [{show(row['low'])}, {show(row['high'])}]"


def with_n(row: Mapping[str, Any], show: Callable[[float], str] = signed) -> str:
    """Returns the estimate with interval and n."""
    return f"{with_interval(row, show)} n={row['n']}"


def detectable(row: Mapping[str, Any]) -> str:
    """Returns the minimum detectable difference, "-" where it is not defined."""
    return "-" if row["minimum_detectable"] is None else plain(row["minimum_detectable"])


def setting_name(ratio: float, level: str) -> str:
    """Returns how a cell of the tables is called in a sentence."""
    return f"{level} at replay ratio {ratio:g}"


def mean_fact(facts: pl.DataFrame, metric: str, level: str, dataset: str | None = None) -> float | None:
    chosen = facts.filter((pl.col("metric") == metric) & (pl.col("level") == level))
    if dataset is not None:
        chosen = chosen.filter(pl.col("dataset") == dataset)
    means = chosen.group_by("dataset").agg(pl.col("value").mean()).sort("dataset")["value"]
    return None if means.is_empty() else float(means.mean())  # type: ignore[arg-type]


def pooled_rows(table: pl.DataFrame, ratio: float, level: str) -> list[dict[str, Any]]:
    """Returns the rows of a comparison at one setting, pooled over data sets, the best estimate first."""
    rows = table.filter((pl.col("dataset") == POOLED) & (pl.col("replay_ratio") == ratio) & (pl.col("level") == level))
    return rows.sort("estimate", "baseline", descending=[True, False], nulls_last=True).to_dicts()


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def pooled(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("dataset") == POOLED)


def short(value: float) -> str:
    """Returns a measurement with three digits."""
    # A distance of a policy to itself is rounding, not 1e-8.
    if abs(value) < 5e-4:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def from_to(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
