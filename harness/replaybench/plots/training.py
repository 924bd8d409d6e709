"""What happened during training."""

from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes

from replaybench.plots.style import LINEAGE_DOT, LINES, MEAN, Look, Style, mark


def metric_over_updates(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws one training diagnostic over updates; bands are cut at the range of the lineages.

    Args:
        table: baseline, kind, update, value, low, high.
    """
    parts = table.sort("update").partition_by("baseline", "kind", as_dict=True)
    for number, (label, style) in enumerate(look.styles.items()):
        means = parts.get((label, MEAN))
        if means is None:
            continue
        dots = parts.get((label, LINEAGE_DOT), table.clear()).filter(pl.col("update") == means["update"][-1])
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
        low, high = (means[name].to_numpy() for name in ("low", "high"))
        axes.fill_between(means["update"], low, high, color=style.colour, alpha=0.1, linewidth=0)
        points = axes.scatter(
            dots["update"], dots["value"], s=4, color=style.colour, alpha=0.6, linewidths=0, clip_on=False
        )
        mark(points, dots.to_dicts(), "value")
    return axes


def along_knob(axes: Axes, table: pl.DataFrame, style: Style, series: str) -> Axes:
    """Draws a value along a knob, one line a series; what may be best is filled.

    Args:
        table: knob_value, estimate, may_be_best, and `series`.
    """
    for number, (name, rows) in enumerate(table.group_by(series, maintain_order=True)):
        ordered = rows.sort("knob_value")
        line = LINES[number % len(LINES)]
        axes.plot(ordered["knob_value"], ordered["estimate"], color=style.colour, linestyle=line, linewidth=1.2)
        # A dense curve shows its optimum only, a few settings each with a mark.
        is_dense = len(ordered) > 20
        marked = ordered.filter("may_be_best") if is_dense else ordered
        for value, estimate, is_plausible in marked.select("knob_value", "estimate", "may_be_best").iter_rows():
            face = style.colour if is_plausible else "white"
            axes.plot([value], [estimate], marker="o", markersize=4.5, color=style.colour, markerfacecolor=face)
        axes.plot([], [], color=style.colour, linestyle=line, label=str(name[0]))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
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
        points = axes.scatter(dots[x], dots[y], s=8, color=style.colour, alpha=0.45, linewidths=0)
        mark(points, dots.to_dicts(), y, x)
        means = arm.filter(pl.col("kind") == MEAN)
        # A control makes no updates and so has no distance.
        if means.is_empty():
            continue
        points = axes.scatter(
            means[x], means[y], s=42, color=style.colour, marker=style.marker, edgecolors="white", linewidths=0.5
        )
        mark(points, means.to_dicts(), y, x)
    return axes
