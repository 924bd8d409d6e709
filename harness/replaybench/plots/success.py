"""Success after training: by freshness level, against the reference, by the width of the correction."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from replaybench.analysis.compare import POOLED, UNRESOLVED
from replaybench.plots.style import GREY, LINEAGE_DOT, MEAN, Look, Style, draw_points, level_axis, mark, plain_log_ticks


def success_by_level(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws success after training against the freshness level, with the control as a band.

    Args:
        table: level (null for the control), baseline, kind, value, low, high; one data set and replay ratio.
    """
    _control_band(axes, table.filter(pl.col("baseline") == look.control))
    trained = table.filter(pl.col("baseline") != look.control)
    labels = [label for label in look.styles if label in set(trained["baseline"])]
    for number, label in enumerate(labels):
        slot = 0.8 / len(labels)
        shift = slot * (number + 0.35) - 0.4
        _draw_arm(axes, trained.filter(pl.col("baseline") == label), look, look.styles[label], (shift, slot / 3))
    for boundary in range(1, len(look.levels)):
        axes.axvline(boundary - 0.5, color="#d0d0d0", linewidth=0.8)
    level_axis(axes, look)
    axes.grid(visible=False, axis="x")
    return axes


def show_all_success(axes: Sequence[Axes], table: pl.DataFrame) -> None:
    """Sets y limits that hold every value and interval of the table, cut to the range of a success."""
    for one in axes:
        one.set_ylim(*_limits(table, floor=0.0, ceiling=1.0))


def _control_band(axes: Axes, control: pl.DataFrame) -> None:
    for row in control.filter(pl.col("kind") == MEAN).iter_rows(named=True):
        if row["value"] is None:
            continue
        axes.axhline(row["value"], color=GREY, linestyle="--", linewidth=1.2, zorder=1)
        if row["low"] is not None:
            axes.axhspan(row["low"], row["high"], color=GREY, alpha=0.13, linewidth=0, zorder=0)


def _draw_arm(axes: Axes, table: pl.DataFrame, look: Look, style: Style, shifts: tuple[float, float]) -> None:
    """Draws the means at the first shift from the level's tick, the dots the second one further right."""
    place = {level: number + shifts[0] for number, level in enumerate(look.levels)}
    dots = table.filter(pl.col("kind") == LINEAGE_DOT).drop_nulls("value")
    points = axes.scatter(
        [place[level] + shifts[1] for level in dots["level"]],
        dots["value"],
        s=9,
        color=style.colour,
        alpha=0.5,
        linewidths=0,
    )
    mark(points, dots.to_dicts(), "value")
    means = table.filter((pl.col("kind") == MEAN) & pl.col("value").is_not_null())
    for row in means.iter_rows(named=True):
        x = place[row["level"]]
        if row["low"] is not None:
            axes.plot([x, x], [row["low"], row["high"]], color=style.colour, linewidth=1.3)
        (point,) = axes.plot([x], [row["value"]], color=style.colour, marker=style.marker, markersize=5.5)
        mark(point, [row], "value")


def _limits(table: pl.DataFrame, floor: float, ceiling: float) -> tuple[float, float]:
    """Returns limits that hold all that is drawn, cut to the possible range."""
    values = [v for name in ("value", "low", "high") for v in table[name].drop_nulls().to_list()]
    if not values:
        return floor, ceiling
    margin = 0.04 * max(max(values) - min(values), 0.05)
    return max(min(values), floor) - margin, min(max(values), ceiling) + margin


def difference_forest(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws the differences to the reference at one level and replay ratio, pooled and below it per data set.

    Resolved differences are filled and thick, unresolved ones hollow and thin.

    Args:
        table: dataset, baseline, estimate, low, high, verdict.
    """
    labels = [label for label in look.styles if label in set(table["baseline"])]
    datasets = [POOLED, *sorted(set(table["dataset"]) - {POOLED})]
    for row in table.iter_rows(named=True):
        if row["estimate"] is None:
            continue
        place = labels.index(row["baseline"]) + 0.24 * datasets.index(row["dataset"]) - 0.12 * (len(datasets) - 1)
        _draw_difference(axes, row, place, look.styles[row["baseline"]])
    axes.axvline(0, color="#333333", linewidth=0.9, zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return axes


def _draw_difference(axes: Axes, row: Mapping[str, Any], place: float, style: Style) -> None:
    is_resolved, is_pooled = row["verdict"] != UNRESOLVED, row["dataset"] == POOLED
    if row["low"] is not None:
        width = (2.6 if is_resolved else 1.1) * (1.0 if is_pooled else 0.6)
        axes.plot([row["low"], row["high"]], [place, place], color=style.colour, linewidth=width, zorder=2)
    (point,) = axes.plot(
        [row["estimate"]],
        [place],
        marker=style.marker,
        markersize=6.5 if is_pooled else 3.8,
        color=style.colour,
        markerfacecolor=style.colour if is_resolved else "white",
        zorder=3,
    )
    mark(point, [row], "estimate")


def success_by_width(axes: Axes, table: pl.DataFrame, start: pl.DataFrame, look: Look) -> Axes:
    """Draws success after training along the width of each correction, with the start policy as a band.

    Args:
        table: family, knob_value, upper (nats), estimate, low, high, learning_rate; one level, replay ratio and rate.
        start: estimate, low, high of the control; at most one row.
    """
    for row in start.drop_nulls("estimate").iter_rows(named=True):
        axes.axhline(row["estimate"], color=GREY, linestyle="--", linewidth=1.2, zorder=1)
    table = table.drop_nulls("estimate")
    families = [label for label in look.styles if label in set(table["family"])]
    for number, family in enumerate(families):
        style = look.styles[family]
        arms = table.filter(pl.col("family") == family).sort("upper")
        # A few percent apart, so that intervals at the same width do not cover each other.
        places = [upper * 1.04 ** (number - (len(families) - 1) / 2) for upper in arms["upper"]]
        axes.plot(places, arms["estimate"], color=style.colour, linewidth=1.2)
        draw_points(axes, places, arms.to_dicts(), style, "estimate", "learning_rate", "knob_value", "upper", size=25)
        for place, low, high in zip(places, arms["low"], arms["high"], strict=True):
            if low is not None:
                axes.plot([place, place], [low, high], color=style.colour, linewidth=1.0, alpha=0.6)
    if not table.is_empty() and (table["upper"] > 0).all():
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
    return axes


def profiles(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws performance profiles: the share of lineages above each score.

    Args:
        table: baseline, score, share_above; one level and replay ratio.
    """
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1.0, zorder=0)
    for number, (label, style) in enumerate(look.styles.items()):
        curve = table.filter(pl.col("baseline") == label).sort("score")
        if curve.is_empty():
            continue
        (line,) = axes.step(
            curve["score"],
            curve["share_above"],
            where="post",
            color=style.colour,
            linestyle=style.line,
            linewidth=1.4,
            marker=style.marker,
            markersize=4,
            markevery=(3 * number % 20, 20),
        )
        mark(line, curve.select("baseline", "level", "replay_ratio").head(1).to_dicts())
    axes.set_ylim(-0.03, 1.03)
    return axes


def speed_up_forest(axes: Axes, table: pl.DataFrame, look: Look, span: float) -> Axes:
    """Draws ratios of steps with their intervals on a logarithmic axis from 1 / span to span.

    Filled: the interval excludes 1. An end that is not bounded runs to the edge as an arrow.

    Args:
        table: baseline, estimate_low, estimate_high, low, high, resolved.
    """
    labels = [label for label in look.styles if label in set(table["baseline"])]
    for row in table.iter_rows(named=True):
        place, style = labels.index(row["baseline"]), look.styles[row["baseline"]]
        low, high = max(row["low"], 1 / span), min(row["high"], span)
        (bar,) = axes.plot([low, high], [place, place], color=style.colour, linewidth=2.4 if row["resolved"] else 1.2)
        mark(bar, [row], "estimate_low", "estimate_high")
        for end, bound, marker in ((low, row["low"], "<"), (high, row["high"], ">")):
            if not 1 / span < bound < span:
                axes.plot([end], [place], marker=marker, color=style.colour, markersize=5, clip_on=False)
        if row["estimate_low"] == row["estimate_high"] and 0 < row["estimate_low"] < span:
            fill = style.colour if row["resolved"] else "white"
            look_of: dict[str, Any] = {"marker": style.marker, "color": style.colour, "markerfacecolor": fill}
            (point,) = axes.plot([row["estimate_low"]], [place], **look_of, markersize=6)
            mark(point, [row], "estimate_low")
    axes.axvline(1, color="#333333", linewidth=0.9, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(1 / span, span)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if 1 / span <= tick <= span]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return axes


def success_by_cost(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws success against cost on a logarithmic axis, a point each way of spending, joined in their order.

    Args:
        table: baseline, cost, steps, learner_samples, value, low, high.
    """
    labels = [label for label in look.styles if label in set(table["baseline"])]
    for number, label in enumerate(labels):
        style = look.styles[label]
        arm = table.filter(pl.col("baseline") == label).sort("cost")
        places = [cost * 1.02 ** (number - (len(labels) - 1) / 2) for cost in arm["cost"]]
        axes.plot(places, arm["value"], color=style.colour, linewidth=0.9)
        draw_points(axes, places, arm.to_dicts(), style, "value", "cost", "steps", "learner_samples")
        for place, low, high in zip(places, arm["low"], arm["high"], strict=True):
            if low is not None:
                axes.plot([place, place], [low, high], color=style.colour, linewidth=1.0, alpha=0.6)
    axes.set_xscale("log")
    return axes
