"""What happened during training."""

from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes

from replaybench.plots.style import LINEAGE_DOT, MEAN, Look


def metric_over_updates(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws one training diagnostic over updates; bands are cut at the range of the lineages.

    Args:
        table: baseline, kind, update, value, low, high.
    """
    arms = table.partition_by("baseline", as_dict=True)
    for number, (label, style) in enumerate(look.styles.items()):
        arm = arms.get((label,), table.clear())
        means = arm.filter(pl.col("kind") == MEAN).sort("update")
        if means.is_empty():
            continue
        axes.plot(
            means["update"],
            means["value"],
            color=style.colour,
            linestyle=style.line,
            linewidth=1.4,
            marker=style.marker,
            markersize=4,
            # Staggered, so that curves that coincide can still be told apart.
            markevery=(number % len(means), max(1, len(look.styles))),
        )
        bounded = means.drop_nulls("low")
        axes.fill_between(
            bounded["update"], bounded["low"], bounded["high"], color=style.colour, alpha=0.1, linewidth=0
        )
        dots = arm.filter((pl.col("kind") == LINEAGE_DOT) & (pl.col("update") == means["update"].max()))
        axes.plot(dots["update"], dots["value"], ".", color=style.colour, markersize=3.5, alpha=0.6, clip_on=False)
    axes.margins(x=0.03)
    return axes


def zoom_to_values(axes: Sequence[Axes], table: pl.DataFrame) -> None:
    """Sets the y limits of the axes to the range of the table's values, leaving wide intervals cut."""
    values = table["value"].drop_nulls()
    if values.is_empty():
        return
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    margin = 0.05 * (high - low) or 0.05 * max(abs(high), 1.0)
    for one in axes:
        one.set_ylim(low - margin, high + margin)


def distances(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws the distance to the start policy against that to the behaviour policy, as points.

    Args:
        table: baseline, kind, end_kl_start, end_kl_k3_behaviour.
    """
    x, y = "end_kl_k3_behaviour", "end_kl_start"
    for label, style in look.styles.items():
        arm = table.filter(pl.col("baseline") == label)
        dots = arm.filter(pl.col("kind") == LINEAGE_DOT)
        axes.scatter(dots[x], dots[y], s=8, color=style.colour, alpha=0.45, linewidths=0)
        means = arm.filter(pl.col("kind") == MEAN)
        # A control makes no updates and so has no distance.
        if means.is_empty():
            continue
        axes.scatter(
            means[x], means[y], s=42, color=style.colour, marker=style.marker, edgecolors="white", linewidths=0.5
        )
    return axes
