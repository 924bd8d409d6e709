"""What happened during training."""

from collections.abc import Mapping, Sequence

import polars as pl
from matplotlib.axes import Axes

from replaybench.plots.style import LINEAGE_DOT, LINES, MEAN, Look, Style, draw_points, mark, plain_log_ticks


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
        (curve,) = axes.plot(
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
        mark(curve, means.tail(1).to_dicts(), "value", "update")
        low, high = (means[name].to_numpy() for name in ("low", "high"))
        axes.fill_between(means["update"], low, high, color=style.colour, alpha=0.1, linewidth=0)
        points = axes.scatter(
            dots["update"], dots["value"], s=4, color=style.colour, alpha=0.6, linewidths=0, clip_on=False
        )
        mark(points, dots.to_dicts(), "value")
    return axes


def by_bucket(axes: Axes, table: pl.DataFrame, buckets: Mapping[str, str], look: Look) -> Axes:
    """Draws a diagnostic by bucket of the data, a point an arm with its interval.

    Args:
        table: baseline, bucket, value, low, high.
        buckets: What is written below each, left to right.
    """
    labels = [label for label in look.styles if label in set(table["baseline"])]
    for number, label in enumerate(labels):
        arm = table.filter(pl.col("baseline") == label)
        shift = 0.7 * ((number + 0.5) / len(labels) - 0.5)
        places = [list(buckets).index(bucket) + shift for bucket in arm["bucket"]]
        for place, low, high in zip(places, arm["low"], arm["high"], strict=True):
            if low is not None:
                axes.plot([place, place], [low, high], color=look.styles[label].colour, linewidth=1.0, alpha=0.6)
        draw_points(axes, places, arm.to_dicts(), look.styles[label], "value", size=14)
    for boundary in range(1, len(buckets)):
        axes.axvline(boundary - 0.5, color="#d0d0d0", linewidth=0.8)
    axes.set_xticks(range(len(buckets)), list(buckets.values()))
    axes.set_xlim(-0.5, len(buckets) - 0.5)
    axes.grid(visible=False, axis="x")
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
        for row in marked.iter_rows(named=True):
            face = style.colour if row["may_be_best"] else "white"
            place = [row["knob_value"]], [row["estimate"]]
            (point,) = axes.plot(*place, marker="o", markersize=4.5, color=style.colour, markerfacecolor=face)
            mark(point, [row], "estimate", "knob_value")
        axes.plot([], [], color=style.colour, linestyle=line, label=str(name[0]))
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis)
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
