"""Gradient coefficients, and the bias and variance that follow from them."""

import math

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from replaybench.plots.style import COLOURS, Look, Style, draw_points, mark

POSITIVE, NEGATIVE = Style(COLOURS[0], "", "-"), Style(COLOURS[1], "", "--")


def weight_curves(axes: Axes, table: pl.DataFrame, look: Look, bottom: float, top: float) -> Axes:
    """Draws gradient coefficients c(l) for one sign of the advantage, cut at `bottom` and `top`.

    Args:
        table: baseline, log_ratio, coefficient.
    """
    axes.axvline(0, color="#999999", linewidth=0.7)
    axes.plot([0], [1], marker="+", color="#333333", markersize=8, zorder=4)
    for label, style in look.styles.items():
        curve = table.filter(pl.col("baseline") == label).sort("log_ratio")
        (line,) = axes.plot(
            curve["log_ratio"],
            curve["coefficient"],
            color=style.colour,
            linestyle=style.line,
            linewidth=1.6,
            marker=style.marker,
            markersize=4,
            markevery=(COLOURS.index(style.colour) if style.colour in COLOURS else 0, 12),
        )
        mark(line, [{"baseline": label}])
    axes.set_ylim(bottom, top)
    return axes


def bias_variance(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws variance against squared bias for one n; what lies on the Pareto frontier is filled.

    Args:
        table: baseline, bias2, variance, is_frontier; a baseline's rows in the order of its knob.
    """
    for label, style in look.styles.items():
        rows = table.filter(pl.col("baseline") == label)
        axes.plot(rows["bias2"], rows["variance"], color=style.colour, linewidth=0.9, alpha=0.6)
        for row in rows.iter_rows(named=True):
            face = style.colour if row["is_frontier"] else "white"
            (point,) = axes.plot(
                [row["bias2"]],
                [row["variance"]],
                marker=style.marker,
                markersize=6,
                color=style.colour,
                markerfacecolor=face,
                linestyle="none",
                clip_on=False,
            )
            mark(point, [row], "bias2", "variance")
    return axes


def wins_by_n(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Stacks how many cells each family wins at each number of samples.

    Args:
        table: baseline, n, cells.
    """
    ns = sorted(table["n"].unique())
    bottom = [0] * len(ns)
    for label, style in look.styles.items():
        rows = table.filter(pl.col("baseline") == label).sort("n").to_dicts()
        if not rows:
            continue
        heights = [row["cells"] for row in rows]
        bars = axes.bar(range(len(ns)), heights, bottom=bottom, width=0.86, color=style.colour, linewidth=0)
        for bar, row in zip(bars, rows, strict=True):
            mark(bar, [row], "cells")
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(0, len(ns), 2), [f"{n:g}" for n in ns[::2]])
    axes.grid(visible=False)
    axes.set_ylim(0, max(bottom))
    return axes


def relative_error(axes: Axes, table: pl.DataFrame, look: Look) -> Axes:
    """Draws the error relative to that of not moving, on logarithmic axes, with its intervals where there are some.

    Args:
        table: baseline, x, relative_mse; low and high where it was estimated.
    """
    for label, style in look.styles.items():
        rows = table.filter(pl.col("baseline") == label).sort("x")
        axes.plot(rows["x"], rows["relative_mse"], color=style.colour, linestyle=style.line, linewidth=1.4)
        if "low" in rows.columns:
            bounded = rows.filter(pl.col("high").is_not_null()).with_columns(
                pl.col("low").clip(pl.col("relative_mse") / 100)
            )
            axes.vlines(bounded["x"], bounded["low"], bounded["high"], color=style.colour, linewidth=0.9, alpha=0.45)
        draw_points(axes, rows["x"].to_list(), rows.to_dicts(), style, "relative_mse", "x", size=16)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if table["relative_mse"].min() < 0.01 else (1.0, 2.0, 5.0)))  # type: ignore[operator]
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return axes


def linear_near_zero(axes: Axes, table: pl.DataFrame, x: str, y: str) -> None:
    """Sets both scales to symlog, linear from 0 to the power of ten below the smallest value that is not rounding."""
    for name, column in (("x", x), ("y", y)):
        largest = float(table[column].max())  # type: ignore[arg-type]
        values = table[column].filter(table[column] > 1e-4 * largest)
        if values.is_empty():
            continue
        # A whole power of ten, so that no tick falls into the linear part.
        threshold = 10.0 ** math.floor(math.log10(values.min()))  # type: ignore[arg-type]
        getattr(axes, f"set_{name}scale")("symlog", linthresh=threshold)
        getattr(axes, f"set_{name}lim")(-0.15 * threshold, 2 * largest)


def weight_panel(axes: Axes, table: pl.DataFrame, bottom: float, top: float) -> Axes:
    """Draws c(l) of one correction for both signs of the advantage, cut at `bottom` and `top`.

    Args:
        table: advantage, log_ratio, coefficient.
    """
    axes.axvline(0, color="#999999", linewidth=0.7)
    axes.axhline(0, color="#999999", linewidth=0.7)
    for sign, style in ((1.0, POSITIVE), (-1.0, NEGATIVE)):
        curve = table.filter(pl.col("advantage") == sign).sort("log_ratio")
        axes.plot(curve["log_ratio"], curve["coefficient"], color=style.colour, linestyle=style.line, linewidth=1.6)
    axes.set_ylim(bottom, top)
    return axes


def sign_handles() -> list[Line2D]:
    """Returns the legend of `weight_panel`."""
    return [
        Line2D([], [], color=style.colour, linestyle=style.line, label=label)
        for style, label in ((POSITIVE, "A > 0"), (NEGATIVE, "A < 0"))
    ]
