"""Gradient coefficients: those of a sweep's arms, and the gallery of all corrections."""

import math
from collections.abc import Mapping
from itertools import zip_longest

import polars as pl
import torch

from replaybench import plots
from replaybench.baseline import Baseline, baseline_paths, gradient_coefficient, load_baseline
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material, loaded_baseline

LOG_RATIO_RANGE, WEIGHT_BOTTOM, WEIGHT_TOP = 4.0, -1.0, 4.0
GALLERY_COLUMNS = 6
GALLERY_RANGE, GALLERY_BOTTOM, GALLERY_TOP = 2.0, -1.0, 3.0
NUM_POINTS = 161
# For corrections that read probabilities: low enough that pi stays below 1 over the whole range.
GALLERY_LOG_MU = -2.5


def draw_weights(material: Material) -> list[Drawing]:
    """Figure 5: the gradient coefficient of every arm of the sweep."""
    table, left_out = weight_table(material)
    if table.is_empty():
        return []
    figure, axes = plots.panels(1, 2, width=4.6, height=3.4, share_y=True)
    bottom = max(WEIGHT_BOTTOM, min(0.0, float(table["coefficient"].min()))) - 0.1  # type: ignore[arg-type]
    top = min(WEIGHT_TOP, float(table["coefficient"].max()) + 0.1)  # type: ignore[arg-type]
    for panel, (sign, title) in zip(axes[0], ((1.0, "A > 0"), (-1.0, "A < 0")), strict=True):
        plots.weight_curves(panel, table.filter(pl.col("advantage") == sign), material.look, bottom, top)
        panel.set_title(title)
        panel.set_xlabel("log-ratio l = log pi - log mu")
    axes[0, 0].set_ylabel("gradient coefficient c(l, A)")
    note = f"c multiplies A grad log pi. Exact, no data. {_cut_words(table, top)}"
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    missing = f" Not drawn: {', '.join(left_out)}." if left_out else ""
    caption = f"{note} c = 1 is the plain policy gradient, c = 0 ignores the item. The cross marks c(0) = 1.{missing}"
    return [Drawing("5-weights", "Weight curves", caption, figure, table)]


def weight_table(material: Material) -> tuple[pl.DataFrame, list[str]]:
    """Returns c(l) for both signs of the advantage and every arm, and why some have no curve."""
    frames, left_out = [], []
    for label, run in material.first_runs.items():
        baseline = loaded_baseline(run)
        if baseline is None:
            left_out.append(f"{label} (changed or missing on disk)")
            continue
        if baseline.declaration.why_no_curve is not None:
            left_out.append(f"{label} ({baseline.declaration.why_no_curve})")
            continue
        frames.append(_curves(label, baseline, run.config, LOG_RATIO_RANGE, log_mu=0.0))
    return (pl.concat(frames) if frames else pl.DataFrame()), left_out


def _cut_words(table: pl.DataFrame, top: float) -> str:
    largest = table.group_by("baseline").agg(pl.col("coefficient").max()).sort("baseline")
    cut = [f"{name} reaches {value:.3g}" for name, value in largest.iter_rows() if value > top]
    return f"Cut at {top:g}: {', '.join(cut)}." if cut else ""


def _curves(
    label: str, baseline: Baseline, settings: Mapping[str, object], reach: float, log_mu: float
) -> pl.DataFrame:
    log_ratio = torch.linspace(-reach, reach, NUM_POINTS, dtype=torch.float64)
    frames = []
    for advantage in (1.0, -1.0):
        coefficient = gradient_coefficient(baseline, baseline.config(settings), log_ratio, advantage, log_mu=log_mu)
        frames.append(
            pl.DataFrame({"log_ratio": log_ratio.tolist(), "coefficient": coefficient.tolist()}).select(
                pl.lit(label).alias("baseline"), pl.lit(advantage).alias("advantage"), pl.all()
            )
        )
    return pl.concat(frames)


def draw_gallery(_: Material) -> list[Drawing]:
    """Figure 9: c(l) of every correction for which it is a function of the item alone, at the defaults."""
    found = [load_baseline(name) for name in baseline_paths()]
    shown = [b for b in found if not b.declaration.beyond_the_item and not b.declaration.batch_statistics]
    table = pl.concat([_curves(baseline.name, baseline, {}, GALLERY_RANGE, GALLERY_LOG_MU) for baseline in shown])
    rows = -(-len(shown) // GALLERY_COLUMNS)
    figure, axes = plots.panels(rows, GALLERY_COLUMNS, width=1.9, height=1.5, share_x=True, share_y=True)
    for place, (panel, baseline) in enumerate(zip_longest(axes.flat, shown)):
        if baseline is None:
            panel.set_axis_off()
            continue
        plots.weight_panel(panel, table.filter(pl.col("baseline") == baseline.name), GALLERY_BOTTOM, GALLERY_TOP)
        panel.tick_params(labelbottom=place >= len(shown) - GALLERY_COLUMNS)
        panel.set_title(baseline.name + ("*" if baseline.declaration.discrete_only else ""), fontsize=8.5)
    note = (
        f"c(l) multiplies A grad log pi; l = log pi - log mu. Every correction at its defaults, cut at "
        f"{GALLERY_BOTTOM:g} and {GALLERY_TOP:g}. *reads probabilities, drawn for mu = {math.exp(GALLERY_LOG_MU):.2f}."
    )
    figure.legend(handles=plots.sign_handles(), loc="outside upper left", ncols=2, frameon=False)
    plots.add_note(figure, note)
    missing = ", ".join(f"{b.name} ({b.declaration.why_no_curve})" for b in found if b not in shown)
    caption = f"{note} Without a curve of their own: {missing}."
    return [Drawing("9-gallery-of-weights", "Gallery of weights", caption, figure, table)]
