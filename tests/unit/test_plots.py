"""Figures: what an Axes holds is compared with the table by hand."""

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from replaybench import plots
from replaybench.analysis.compare import BETTER, POOLED, UNRESOLVED

LABELS = {"start": "start", "a": "a", "b": "b"}
LOOK = plots.Look(
    styles=plots.styles(LABELS, ["a", "b", "c"], "start"),
    levels=["fresh", "stale"],
    control="start",
    reference="a",
    ticks={"stale": "stale\nKL 0.2"},
)


@pytest.fixture
def axes() -> Axes:
    """An empty Axes of a figure of its own."""
    return Figure().subplots()


def _success() -> pl.DataFrame:
    schema = ["level", "baseline", "kind", "value", "low", "high"]
    rows = [
        (None, "start", plots.MEAN, 0.5, 0.4, 0.6),
        ("fresh", "a", plots.MEAN, 0.7, 0.6, 0.8),
        ("stale", "a", plots.MEAN, 0.3, None, None),
        ("fresh", "b", plots.MEAN, None, None, None),
        ("fresh", "a", plots.LINEAGE_DOT, 0.72, None, None),
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _points(axes: Axes) -> list[tuple[float, ...]]:
    """The y values of every line, in the order of drawing."""
    return [tuple(float(v) for v in line.get_ydata()) for line in axes.lines]


def test_a_style_does_not_depend_on_arms_of_other_baselines() -> None:
    """More settings of b change nothing for c, as long as the same files exist."""
    known = ["a", "b", "c", "d"]
    alone = plots.styles({"c": "c"}, known, "start")
    among = plots.styles({"a": "a", "b (lr 1)": "b", "b (lr 2)": "b", "c": "c"}, known, "start")
    assert alone["c"] == among["c"]


def test_eight_baselines_of_many_have_eight_colours() -> None:
    """Places 0, 8, 16, ... of 64 known ones all prefer the first colour; in one sweep they must still differ."""
    known = [f"b{i:02d}" for i in range(64)]
    found = plots.styles({name: name for name in known[::8]}, known, "start")
    assert {style.colour for style in found.values()} == set(plots.COLOURS)


def test_seventy_two_baselines_have_different_pairs_of_colour_and_marker() -> None:
    """8 colours and 9 markers without a common divisor: 72 pairs, counted."""
    names = [f"b{i:02d}" for i in range(72)]
    found = plots.styles({name: name for name in names}, names, "start")
    assert len({(style.colour, style.marker) for style in found.values()}) == 72


def test_axes_keep_a_value_of_zero_in_sight(axes: Axes) -> None:
    """The estimator without variance stands at 0, which a logarithmic axis would drop; rounding sets no threshold."""
    table = pl.DataFrame({"bias2": [1e-33, 3e-3, 1e-2], "variance": [0.15, 0.0, 0.2]})
    plots.linear_near_zero(axes, table, "bias2", "variance")
    assert axes.get_xscale() == axes.get_yscale() == "symlog"
    assert axes.get_xlim() == pytest.approx((-0.15e-3, 2e-2))
    assert axes.get_ylim() == pytest.approx((-0.015, 0.4))


def test_arms_of_a_baseline_share_its_colour_and_differ_in_marker() -> None:
    """Colour says which baseline, marker and line which of its settings."""
    first, second = plots.styles({"a (1)": "a", "a (2)": "a"}, ["a"], "start").values()
    assert first.colour == second.colour
    assert first.marker != second.marker
    assert first.line != second.line


def test_the_control_is_grey_and_dashed() -> None:
    """It is no method and must not look like one."""
    assert LOOK.styles["start"][::2] == (plots.GREY, "--")


def test_success_draws_the_means_intervals_and_the_control(axes: Axes) -> None:
    """The control at .5, a at .7 with its bar from .6 to .8 and at .3 without a bar; b has no value and no point."""
    assert plots.success_by_level(axes, _success(), LOOK) is axes
    drawn = _points(axes)
    assert (0.5, 0.5) in drawn
    assert (0.6, 0.8) in drawn
    assert [y for y in drawn if len(y) == 1] == [(0.7,), (0.3,)]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["fresh", "stale\nKL 0.2"]


def test_success_stays_within_the_possible_range(axes: Axes) -> None:
    """An interval that leaves [0, 1] is cut there; the axis does not grow to -.5 or 1.5."""
    table = _success().with_columns(low=pl.lit(-0.5), high=pl.lit(1.5))
    plots.show_all_success([plots.success_by_level(axes, table, LOOK)], table)
    low, high = axes.get_ylim()
    assert -0.1 < low < 0
    assert 1 < high < 1.1


def test_a_forest_fills_what_is_resolved_and_leaves_the_rest_hollow(axes: Axes) -> None:
    """b is resolved and filled with its colour, start is not and is white; both stand at their estimates."""
    rows = [
        (POOLED, "b", 0.2, 0.1, 0.3, BETTER),
        (POOLED, "start", -0.1, -0.3, 0.1, UNRESOLVED),
        (POOLED, "c", None, None, None, UNRESOLVED),
    ]
    table = pl.DataFrame(rows, schema=["dataset", "baseline", "estimate", "low", "high", "verdict"], orient="row")
    look = LOOK._replace(styles=plots.styles({"start": "start", "b": "b", "c": "c"}, ["a", "b", "c"], "start"))
    plots.difference_forest(axes, table, look)
    markers = {float(line.get_xdata()[0]): line for line in axes.lines if line.get_marker() not in ("None", None, "")}
    assert set(markers) == {0.2, -0.1}
    assert to_hex(str(markers[0.2].get_markerfacecolor())) == look.styles["b"].colour.lower()
    assert markers[-0.1].get_markerfacecolor() == "white"


def test_a_diagnostic_is_drawn_in_the_order_of_updates(axes: Axes) -> None:
    """Rows may come in any order; the curve does not run back."""
    rows = [("a", plots.MEAN, 9, 0.9, 0.8, 1.0), ("a", plots.MEAN, 1, 0.1, None, None)]
    rows += [("a", plots.LINEAGE_DOT, 9, 0.95, None, None), ("a", plots.LINEAGE_DOT, 1, 0.15, None, None)]
    table = pl.DataFrame(rows, schema=["baseline", "kind", "update", "value", "low", "high"], orient="row")
    plots.metric_over_updates(axes, table, LOOK)
    (curve,) = axes.lines
    assert list(curve.get_xdata()) == [1, 9]
    assert np.asarray(axes.collections[-1].get_offsets()).tolist() == [[9.0, 0.95]]


def test_distances_become_logarithmic_only_where_all_are_positive(axes: Axes) -> None:
    """A distance of 0 has no logarithm and must not vanish from the figure."""
    table = pl.DataFrame({"x": [0.1, 0.2], "y": [0.0, 0.2]})
    plots.log_where_positive([axes], table, "x", "y")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_weight_curves_are_cut_where_the_caller_says(axes: Axes) -> None:
    """The data stay whole, the axis ends at the limits."""
    table = pl.DataFrame({"baseline": ["a"] * 3, "log_ratio": [1.0, -1.0, 0.0], "coefficient": [9.0, 0.1, 1.0]})
    plots.weight_curves(axes, table, LOOK, -0.1, 4.0)
    assert axes.get_ylim() == (-0.1, 4.0)
    assert (0.1, 1.0, 9.0) in _points(axes)


def test_the_frontier_is_filled(axes: Axes) -> None:
    """One row on the frontier, one off it."""
    table = pl.DataFrame(
        {"baseline": ["a", "b"], "bias2": [0.1, 0.2], "variance": [0.3, 0.4], "is_frontier": [True, False]}
    )
    plots.bias_variance(axes, table, LOOK)
    faces = {line.get_xdata()[0]: line.get_markerfacecolor() for line in axes.lines if line.get_linestyle() == "None"}
    assert faces == {0.1: LOOK.styles["a"].colour, 0.2: "white"}


def test_levels_of_the_logs_stand_in_the_given_order(axes: Axes) -> None:
    """Means at their values, left to right as in the look; a level outside it is left out."""
    rows = [("d", "stale", plots.MEAN, 0.2, 0.1, 0.3), ("d", "fresh", plots.MEAN, 0.0, None, None)]
    rows += [("d", "stale", plots.LINEAGE_DOT, 0.2, None, None), ("d", "other", plots.MEAN, 7.0, None, None)]
    table = pl.DataFrame(rows, schema=["dataset", "level", "kind", "value", "low", "high"], orient="row")
    plots.level_measure(axes, table, LOOK, ["d"])
    single = {
        float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1
    }
    assert set(single) == {0.2, 0.0}
    assert single[0.0] < 0.5 < single[0.2]


def _figure() -> Figure:
    with plots.theme():
        figure, axes = plots.panels(1, 2, width=3, height=2)
        plots.success_by_level(axes[0, 0], _success(), LOOK)
        return plots.finish(figure, LOOK, ["a", "start"], "mean over n = 3 lineages")


def test_rendering_is_reproducible_and_has_three_formats() -> None:
    """The same table gives the same bytes, so that a rebuilt report differs only where its numbers do."""
    first, second = plots.render(_figure()), plots.render(_figure())
    assert first == second
    assert first.png.startswith(b"\x89PNG")
    assert first.pdf.startswith(b"%PDF")
    assert "<svg" in first.svg


def test_an_inline_svg_refers_only_to_itself_and_needs_no_network() -> None:
    """Every reference has its target in the same figure, ids carry its name, and no address is fetched."""
    svg = plots.inline_svg(plots.render(_figure()).svg, "one")
    ids = set(re.findall(r'\bid="([^"]*)"', svg))
    references = set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg))
    assert references
    assert references <= ids
    assert all(name.startswith("one-") for name in ids)
    assert not re.findall(r'href="(?!#)', svg)
    assert "<metadata" not in svg


@pytest.mark.parametrize(("number", "text"), [("1.23456", "1.23"), ("10.5", "10.5"), ("0.015625", "0.02")])
def test_paths_are_rounded_to_hundredths_and_transforms_are_not(number: str, text: str) -> None:
    """A glyph's scale of 0.015625 would be visibly wrong at 0.02; a path's coordinate is not. Rounded by hand."""
    path = f'<path d="M {number} 1" transform="scale({number})"/>'
    document = f'<?xml?><svg width="72pt" height="36pt" viewBox="0 0 72 36">{path}</svg>'
    element: Any = plots.inline_svg(document, "n")
    assert f'd="M {text} 1"' in element
    assert f"scale({number})" in element
    assert element.startswith('<svg viewBox="0 0 72 36" style="--natural: 72pt">')


def test_a_mark_says_what_is_behind_it(axes: Axes) -> None:
    """One title a point, in the order of the rows: place, value with interval and n, runs; no address is left."""
    rows: list[dict[str, Any]] = [
        {"baseline": "a", "level": "fresh", "replay_ratio": 8.0, "lineage": 3, "value": 0.5, "n": 1, "runs": "x\ny"},
        {"baseline": "b", "level": None, "lineage": None, "value": 0.25, "low": 0.2, "high": 0.3, "n": 6},
    ]
    plots.mark(axes.scatter([0, 1], [0, 1]), rows, "value")
    svg = plots.render(axes.get_figure()).svg  # type: ignore[arg-type]
    assert re.findall(r'<g class="mark"><title>([^<]*)</title>', svg) == [
        "a, fresh, replay ratio 8, lineage 3\nvalue 0.5\nx\ny",
        "b\nvalue 0.25 [0.2, 0.3], n = 6",
    ]
    assert "</a>" not in svg


def test_a_page_gives_every_colour_of_a_figure_a_light_and_a_dark_value(axes: Axes) -> None:
    """The paper turns dark, a baseline's colour lighter, and no colour is left that the theme cannot change."""
    axes.plot([0, 1], color=plots.COLOURS[7])
    svg = plots.inline_svg(plots.render(axes.get_figure()).svg, "one")  # type: ignore[arg-type]
    assert not re.findall(r"(?:fill|stroke): #", svg)
    light, dark = plots.colour_css([svg]).split("@media")
    used = set(re.findall(r"var\((--c[0-9a-f]{6})\)", svg))
    assert {"--cffffff", "--c332288"} <= used
    for name in used:
        assert f"{name}:#{name[3:]};" in light
        assert f"{name}:#" in dark
    assert "--cffffff:#14171a;" in dark
    assert "--c332288:#836bf0;" in dark


def test_colours_on_a_dark_page_are_as_far_apart_as_on_a_light_one() -> None:
    """Smallest distance in CIELAB, as seen by normal and colour-blind eyes (Machado et al. 2009), and 3:1 contrast."""
    assert _least_distance(plots.COLOURS_ON_DARK) >= _least_distance(plots.COLOURS) > 10
    paper = _luminance("#14171a")
    assert all((_luminance(colour) + 0.05) / (paper + 0.05) > 3 for colour in plots.COLOURS_ON_DARK)


CONFUSIONS = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _linear(colour: str) -> Any:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _luminance(colour: str) -> float:
    return float(TO_XYZ[1] @ _linear(colour))


def _lab(linear: Any) -> Any:
    t = (TO_XYZ @ np.clip(linear, 0, 1)) / TO_XYZ.sum(axis=1)
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _least_distance(colours: Sequence[str]) -> float:
    seen = [[_lab(confusion @ _linear(colour)) for colour in colours] for confusion in CONFUSIONS]
    return min(float(np.linalg.norm(a - b)) for points in seen for a, b in combinations(points, 2))
