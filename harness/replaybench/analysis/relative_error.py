"""The error of a gradient estimator relative to that of a reference, over lineages."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from replaybench.analysis.intervals import Interval, mean_t


def ratio_of_means(numerator: ArrayLike, denominator: ArrayLike) -> Interval:
    """Returns mean(numerator) / mean(denominator) of paired values, with the jackknife's t interval.

    The estimate is the mean of the pseudo-values n R - (n - 1) R_without_i, which removes the bias of order 1/n.
    """
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    n = len(top)
    if n < 2:
        return Interval(float(top.sum() / bottom.sum()), np.nan, np.nan, n, "undefined")
    without = (top.sum() - top) / (bottom.sum() - bottom)
    return mean_t(n * top.sum() / bottom.sum() - (n - 1) * without)


def relative_errors(gradients: pl.DataFrame, baseline: str, config: Mapping[str, Any]) -> pl.DataFrame:
    """Returns mse / mse of the reference by data set, level, n, baseline and config: estimate, low, high, n_lineages.

    Both means are over lineages. The reference is a correction: the mse of not moving is the squared length of the
    gradient, whose unbiased estimate can be negative where the gradient is small.

    Args:
        gradients: Columns of `gradient_study.SCHEMA`; rows without an mse (a log without fresh episodes) are left out.
        baseline, config: Of the reference.
    """
    place = ["dataset", "level", "n"]
    measured = gradients.drop_nulls("mse")
    is_reference = pl.col("config").map_elements(lambda text: json.loads(text) == dict(config), return_dtype=pl.Boolean)
    reference = measured.filter((pl.col("baseline") == baseline) & is_reference).select(
        *place, "lineage", of_reference="mse"
    )
    paired = measured.join(reference, on=[*place, "lineage"])
    rows = []
    for key, group in paired.group_by(*place, "baseline", "config", maintain_order=True):
        found = ratio_of_means(group["mse"], group["of_reference"])
        rows.append((*key, found.estimate, found.low, found.high, found.n))
    columns = [*place, "baseline", "config", "estimate", "low", "high", "n_lineages"]
    return pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None).with_columns(
        pl.col("low", "high").cast(pl.Float64).fill_nan(None)
    )
