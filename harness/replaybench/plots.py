"""The report's figures: every function takes a table and an Axes and draws exactly what the table holds.

Colour and marker = baseline, the same in all figures; x = freshness or updates; bar or band = 95 % t interval over
lineages; small dots = lineages. Tables carry a column `kind`: "mean" rows have the interval, "lineage" rows are dots.
"""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
import polars as pl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from replaybench.analysis.compare import POOLED, UNRESOLVED

MEAN, LINEAGE_DOT = "mean", "lineage"

# Okabe and Ito's palette without black and yellow, and two dark tones of Tol's; 8 colours and 9 markers share no
# divisor, so 72 baselines together have 72 different pairs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":")
GREY = "#6b6b6b"

THEME: dict[Any, Any] = {
    **sns.axes_style("ticks"),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.hashsalt": "replaybench",
    "pdf.fonttype": 42,
}


class Style(NamedTuple):
    """How one arm is drawn, in every figure."""

    colour: str
    marker: str
    line: Any


class Look(NamedTuple):
    """What the panels of a report share.

    styles: by label, in the order of the legend. levels: left to right, with `ticks` as what is written below them.
    """

    styles: Mapping[str, Style]
    levels: Sequence[str]
    control: str
    reference: str
    ticks: Mapping[str, str] = {}


class Rendered(NamedTuple):
    """A figure in its three formats; `svg` is an element that can stand in a page."""

    png: bytes
    pdf: bytes
    svg: str


def theme() -> AbstractContextManager[None]:
    """Returns the context in which figures are made."""
    return matplotlib.rc_context(THEME)


def styles(baseline_of_label: Mapping[str, str], known: Sequence[str], control: str) -> dict[str, Style]:
    """Returns a style for every label; with up to eight trained baselines no two share a colour.

    A baseline's place among all that exist decides its marker and the colour that it prefers. One whose colour is taken
    by an earlier name of the same sweep moves on to the next that is used least.

    Args:
        baseline_of_label: The baseline of each arm; arms of one baseline share its colour.
        known: All baselines that exist.
        control: The label that is drawn grey and dashed.
    """
    order = {name: number for number, name in enumerate(sorted({*known, *baseline_of_label.values()}))}
    colours = _colours({name: order[name] for label, name in baseline_of_label.items() if label != control})
    found: dict[str, Style] = {}
    arms: dict[str, int] = {}
    for label, baseline in baseline_of_label.items():
        if label == control:
            found[label] = Style(GREY, "d", "--")
            continue
        arm = arms.setdefault(baseline, 0)
        arms[baseline] += 1
        marker = MARKERS[(order[baseline] + arm) % len(MARKERS)]
        found[label] = Style(colours[baseline], marker, LINES[arm % len(LINES)])
    return found


def _colours(numbers: Mapping[str, int]) -> dict[str, str]:
    uses = [0] * len(COLOURS)
    found = {}
    for name in sorted(numbers):
        probes = [(numbers[name] + step) % len(COLOURS) for step in range(len(COLOURS))]
        chosen = min(probes, key=lambda index: uses[index])
        uses[chosen] += 1
        found[name] = COLOURS[chosen]
    return found


def panels(rows: int, columns: int, *, width: float, height: float, share_x: Any = False, share_y: Any = False) -> Any:
    """Returns a Figure and its [rows, columns] array of Axes, each `width` x `height` inches."""
    figure = Figure(figsize=(max(width * columns, 7.5), height * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    return figure, axes


def finish(figure: Figure, look: Look, labels: Sequence[str], note: str) -> Figure:
    """Adds the legend of the labels and a note on n, statistic and interval below the panels."""
    shown = [label for label in look.styles if label in set(labels)]
    handles = [_handle(look.styles[label], _legend_name(look, label)) for label in shown]
    if handles:
        longest = max(len(_legend_name(look, label)) for label in shown)
        columns = max(1, int(figure.get_figwidth() * 11 / (longest + 7)))
        figure.legend(handles=handles, loc="outside upper left", ncols=min(columns, len(handles)), frameon=False)
    figure.supxlabel("\n".join(textwrap.wrap(note, int(figure.get_figwidth() * 14))), fontsize=8, color="#555555")
    return figure


def _legend_name(look: Look, label: str) -> str:
    roles = [role for role, name in (("reference", look.reference), ("start policy", look.control)) if name == label]
    return f"{label} ({', '.join(roles)})" if roles else label


def _handle(style: Style, label: str) -> Line2D:
    return Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, markersize=5, label=label)


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
    _level_axis(axes, look)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(*_limits(table, floor=0.0, ceiling=1.0))
    return axes


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
    axes.scatter(
        [place[level] + shifts[1] for level in dots["level"]],
        dots["value"],
        s=9,
        color=style.colour,
        alpha=0.5,
        linewidths=0,
    )
    means = table.filter((pl.col("kind") == MEAN) & pl.col("value").is_not_null())
    for row in means.iter_rows(named=True):
        x = place[row["level"]]
        if row["low"] is not None:
            axes.plot([x, x], [row["low"], row["high"]], color=style.colour, linewidth=1.3)
        axes.plot([x], [row["value"]], color=style.colour, marker=style.marker, markersize=5.5)


def _level_axis(axes: Axes, look: Look) -> None:
    axes.set_xticks(range(len(look.levels)), [look.ticks.get(level, level) for level in look.levels])
    axes.set_xlim(-0.5, len(look.levels) - 0.5)


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
    axes.plot(
        [row["estimate"]],
        [place],
        marker=style.marker,
        markersize=6.5 if is_pooled else 3.8,
        color=style.colour,
        markerfacecolor=style.colour if is_resolved else "white",
        zorder=3,
    )


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


def log_where_positive(axes: Sequence[Axes], table: pl.DataFrame, x: str, y: str) -> None:
    """Sets log scales where every value of a column is positive; ticks are plain numbers at 1, 2 and 5."""
    for name, column in (("x", x), ("y", y)):
        values = table[column].drop_nulls()
        if values.is_empty() or not (values > 0).all():
            continue
        for one in axes:
            one.set(**{f"{name}scale": "log"})
            axis = one.xaxis if name == "x" else one.yaxis
            wide = float(values.max()) > 100 * float(values.min())  # type: ignore[arg-type]
            axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


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


def weight_curves(axes: Axes, table: pl.DataFrame, look: Look, bottom: float, top: float) -> Axes:
    """Draws gradient coefficients c(l) for one sign of the advantage, cut at `bottom` and `top`.

    Args:
        table: baseline, log_ratio, coefficient.
    """
    axes.axvline(0, color="#999999", linewidth=0.7)
    axes.plot([0], [1], marker="+", color="#333333", markersize=8, zorder=4)
    for label, style in look.styles.items():
        curve = table.filter(pl.col("baseline") == label).sort("log_ratio")
        axes.plot(
            curve["log_ratio"],
            curve["coefficient"],
            color=style.colour,
            linestyle=style.line,
            linewidth=1.6,
            marker=style.marker,
            markersize=4,
            markevery=(COLOURS.index(style.colour) if style.colour in COLOURS else 0, 12),
        )
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
            axes.plot(
                [row["bias2"]],
                [row["variance"]],
                marker=style.marker,
                markersize=6,
                color=style.colour,
                markerfacecolor=face,
                linestyle="none",
                clip_on=False,
            )
    return axes


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
            axes.plot([x], [row["value"]], marker=MARKERS[number % len(MARKERS)], color=grey, markersize=5.5)
    axes.set_xlabel("")
    _level_axis(axes, look)
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


def render(figure: Figure, name: str) -> Rendered:
    """Returns the figure as PNG (200 dpi), PDF and inline SVG; the same figure gives the same bytes.

    Args:
        name: Prefix of the SVG's ids, which must differ between the figures of a page.
    """
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    # Solved once; and the canvases are called directly because savefig draws everything twice.
    figure.set_layout_engine("none")
    png, pdf, svg = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with theme():
        figure.set_dpi(200)
        to_png: Any = FigureCanvasAgg(figure)
        to_png.print_png(png, metadata={"Software": None})
        to_pdf: Any = FigureCanvasPdf(figure)
        to_pdf.print_pdf(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
        to_svg: Any = FigureCanvasSVG(figure)
        to_svg.print_svg(svg, metadata={"Date": None, "Creator": None})
    return Rendered(png.getvalue(), pdf.getvalue(), inline_svg(svg.getvalue().decode(), name))


def inline_svg(document: str, name: str) -> str:
    """Returns the <svg> element of a document for use inside a page: no prologue, no metadata, ids of its own."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = element.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    # A hundredth of a point is finer than any screen; glyph outlines are whole numbers, transforms stay exact.
    element = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d{3,}", _hundredth, path[0]), element)
    # The page chooses the width and needs to know the natural one; the viewBox keeps the proportions.
    opening, rest = element.split(">", 1)
    width = re.search(r' width="([0-9.]+)pt"', opening)
    natural = f' style="--natural: {width[1]}pt"' if width else ""
    return re.sub(r' (width|height)="[^"]*"', "", opening) + natural + ">" + rest


def _hundredth(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
