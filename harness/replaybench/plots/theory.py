"""What theory promises of a bounded trust weight, and what was measured."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from replaybench.plots.style import COLOURS, GREY, Style, draw_points, mark


def peaks(axes: Axes, table: pl.DataFrame) -> Axes:
    """Draws the largest coefficient found for each width on the line of the bound.

    Args:
        table: sigma, coefficient, bound.
    """
    sigma = np.linspace(0.0, float(table["sigma"].max()), 200)  # type: ignore[arg-type]
    axes.plot(sigma, np.exp(sigma**2 / 2), color=GREY, linewidth=1.2, label="bound, $e^{\\sigma^2/2}$")
    points = axes.scatter(table["sigma"], table["coefficient"], s=36, color=COLOURS[0], zorder=3, label="largest found")
    mark(points, table.to_dicts(), "coefficient", "bound", "sigma")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, loc="upper left")
    return axes


def concentration(axes: Axes, table: pl.DataFrame) -> Axes:
    """Draws how far averages stray from their own mean and from the gradient, under the bounds.

    Args:
        table: n, deviation, error, hoeffding, bernstein, bias.
    """
    axes.plot(table["n"], table["hoeffding"], color=GREY, linestyle="--", label="Hoeffding")
    axes.plot(table["n"], table["bernstein"], color=GREY, linestyle=":", label="Bernstein")
    for column, words, style in (
        ("deviation", "to its own mean", Style(COLOURS[0], "o", "-")),
        ("error", "to the gradient", Style(COLOURS[1], "s", "-")),
    ):
        axes.plot(table["n"], table[column], color=style.colour, label=words)
        draw_points(axes, table["n"].to_list(), table.to_dicts(), style, column, size=13)
    axes.axhline(table["bias"][0], color=COLOURS[1], linewidth=0.8, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return axes


def gradient_left(axes: Axes, table: pl.DataFrame, column: str, styles: dict[str, Style]) -> Axes:
    """Draws which share of the items keeps a gradient at each distance.

    Args:
        table: label, distance, and `column`.
    """
    for label, style in styles.items():
        rows = table.filter(pl.col("label") == label).sort("distance")
        (line,) = axes.step(
            rows["distance"],
            rows[column],
            where="mid",
            color=style.colour,
            linestyle=style.line,
            label=label,
            alpha=0.9,
        )
        mark(line, [{"baseline": label}])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.2g}")
    axes.set_ylim(-0.04, 1.04)
    return axes
