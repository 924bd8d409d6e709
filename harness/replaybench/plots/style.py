"""What all figures share: the colour and marker of a baseline, the frame of panels, legend and note."""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
import polars as pl
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

MEAN, LINEAGE_DOT = "mean", "lineage"


# Okabe and Ito's palette without black and yellow, and two dark tones of Tol's; 8 colours and 9 markers share no
# divisor, so 72 baselines together have 72 different pairs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")


# The same hues lighter: at least 3:1 on the dark page, and further apart than those above to colour-blind eyes.
COLOURS_ON_DARK = ("#558fd7", "#ed7c35", "#2ec395", "#c97eb0", "#fec035", "#9dcefc", "#b5396f", "#836bf0")


# The background and the ink of a dark page, between which the greys of a figure are turned over.
DARK_PAPER, DARK_INK = (0x14, 0x17, 0x1A), (0xE6, 0xE8, 0xEB)


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
    # Text stays text: lighter than outlines, and a page can search it.
    "svg.fonttype": "none",
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


def theme() -> AbstractContextManager[None]:
    """Returns the context in which figures are made."""
    return matplotlib.rc_context(THEME)


def on_dark(colour: str) -> str:
    """Returns what stands for a colour (#rrggbb) on a dark page: greys are turned over, hues lightened."""
    known = {light.lower(): dark for light, dark in zip(COLOURS, COLOURS_ON_DARK, strict=True)}
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    if red == green == blue:
        turned = [round(ink + (paper - ink) * red / 255) for paper, ink in zip(DARK_PAPER, DARK_INK, strict=True)]
        return "#{:02x}{:02x}{:02x}".format(*turned)
    return known.get(colour.lower(), colour)


def mark(artist: Artist, rows: Sequence[Mapping[str, Any]], *values: str) -> None:
    """Lets a reader of the SVG see what is behind the marks of an artist, a row each: place, values, runs.

    Args:
        rows: In the order in which the artist holds its points; a line takes one row.
        values: The columns to show, the first one with its interval.
    """
    # An address is the one text that matplotlib carries into an SVG for each point of a collection.
    words = [_mark_words(row, values) for row in rows]
    if isinstance(artist, PathCollection):
        artist.set_urls(words)
    else:
        artist.set_url(words[0])


def draw_points(
    axes: Axes, places: Sequence[float], rows: Sequence[Mapping[str, Any]], style: Style, *values: str, size: float = 22
) -> None:
    """Draws a marker at each place and the first value of its row, which says what is behind it."""
    heights = [row[values[0]] for row in rows]
    points = axes.scatter(places, heights, s=size, color=style.colour, marker=style.marker, linewidths=0.8, zorder=3)
    mark(points, rows, *values)


def _mark_words(row: Mapping[str, Any], values: Sequence[str]) -> str:
    place = [str(row[name]) for name in ("baseline", "family", "dataset", "level") if row.get(name) is not None]
    place += [f"replay ratio {row['replay_ratio']:g}"] if row.get("replay_ratio") is not None else []
    place += [f"lineage {row['lineage']}"] if row.get("lineage") is not None else []
    lines = [", ".join(place)]
    for number, name in enumerate(values):
        if row[name] is None:
            continue
        interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if not number and row.get("low") is not None else ""
        count = f", n = {row['n']}" if not number and row.get("n", 1) != 1 else ""
        lines.append(f"{name.replace('_', ' ')} {row[name]:.3g}{interval}{count}")
    lines += [str(row[name]) for name in ("verdict", "runs") if row.get(name)]
    return "\n".join(lines)


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
    add_note(figure, note)
    return figure


def add_note(figure: Figure, note: str) -> None:
    """Writes n, statistic and interval below the panels."""
    figure.supxlabel("\n".join(textwrap.wrap(note, int(figure.get_figwidth() * 14))), fontsize=8, color="#555555")


def _legend_name(look: Look, label: str) -> str:
    roles = [role for role, name in (("reference", look.reference), ("start policy", look.control)) if name == label]
    return f"{label} ({', '.join(roles)})" if roles else label


def _handle(style: Style, label: str) -> Line2D:
    return Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, markersize=5, label=label)


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
            plain_log_ticks(axis, (1.0,) if wide else (1.0, 2.0, 5.0))


def plain_log_ticks(axis: Axis, digits: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Sets the ticks of a logarithmic axis to plain numbers that begin with these digits."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def level_axis(axes: Axes, look: Look) -> None:
    axes.set_xticks(range(len(look.levels)), [look.ticks.get(level, level) for level in look.levels])
    axes.set_xlim(-0.5, len(look.levels) - 0.5)
