"""Off-policyness of the freshness levels."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from replaybench.plots.style import LINEAGE_DOT, MARKERS, MEAN, Look, level_axis, mark


def level_measure(axes: Axes, table: pl.DataFrame, look: Look, datasets: Sequence[str]) -> Axes:
    """Draws one measurement of the logs by freshness level: dots are lineages, bars their mean and interval.

    Args:
        table: dataset, level, kind, value, low, high.
        datasets: All data sets of the figure, in the order of its legend.
    """
    greys = _greys(datasets)
    dots = table.filter((pl.col("kind") == LINEAGE_DOT) & pl.col("level").is_in(list(look.levels)))
    sns.stripplot(
        data=dots.select("dataset", "level", "value").to_pandas(),
        x="level",
        y="value",
        hue="dataset",
        order=list(look.levels),
        hue_order=list(datasets),
        palette=greys,
        dodge=True,
        jitter=False,
        size=4,
        alpha=0.55,
        legend=False,
        ax=axes,
    )
    for number, (name, grey) in enumerate(zip(datasets, greys, strict=True)):
        shift = 0.8 * ((number + 0.5) / len(datasets) - 0.5) + 0.12
        means = table.filter((pl.col("kind") == MEAN) & (pl.col("dataset") == name) & pl.col("value").is_not_null())
        for row in means.filter(pl.col("level").is_in(list(look.levels))).iter_rows(named=True):
            x = look.levels.index(row["level"]) + shift
            if row["low"] is not None:
                axes.plot([x, x], [row["low"], row["high"]], color=grey, linewidth=1.3)
            (point,) = axes.plot([x], [row["value"]], marker=MARKERS[number % len(MARKERS)], color=grey, markersize=5.5)
            mark(point, [row], "value")
    axes.set_xlabel("")
    level_axis(axes, look)
    return axes


def dataset_handles(datasets: Sequence[str]) -> list[Line2D]:
    """Returns the legend of `level_measure`."""
    return [
        Line2D([], [], color=grey, marker=MARKERS[number % len(MARKERS)], linestyle="-", markersize=5, label=name)
        for number, (name, grey) in enumerate(zip(datasets, _greys(datasets), strict=True))
    ]


def _greys(datasets: Sequence[str]) -> list[Any]:
    # Colour means baseline everywhere else, so data sets differ in lightness and marker.
    return list(sns.color_palette("Greys", len(datasets) + 2)[2:])
