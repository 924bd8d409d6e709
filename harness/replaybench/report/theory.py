"""The theory of the published study, measured: the bound, the concentration, the share of items with a gradient."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from replaybench import plots
from replaybench.analysis.bias_variance import NUM_SAMPLES, widest_cell
from replaybench.analysis.theory import GRID_STEP, NEAR_ZERO, concentration, gradient_left, peak, update_bound
from replaybench.baseline import load_baseline
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material
from replaybench.report.words import listed
from replaybench.seeding import numpy_generator
from replaybench.study import coefficient_of, curve_of, published_study

DISTANCES = np.geomspace(2**-8, 64.0, 561)
# A width at which the bias is most of the error at many samples, and the default one.
WIDTHS = (0.3, 1.0)
REPETITIONS = 4000
ROUNDING = 1e-12


class Theory(NamedTuple):
    """Peaks by width; concentration by width and n; shares by label and distance."""

    peaks: pl.DataFrame
    concentration: pl.DataFrame
    left: pl.DataFrame


@lru_cache(maxsize=1)
def measured_theory() -> Theory:
    """Measures everything once a process; nothing in it depends on a sweep."""
    setup = published_study()
    family = load_baseline(setup.family)
    assert family.declaration.knob is not None
    knob = family.declaration.knob.field
    widths = [config[knob] for name, config in setup.settings if name == setup.family]
    peaks = [peak(width, curve_of(family, family.config({knob: width}), torch.float64)) for width in widths]
    strays = []
    for width in WIDTHS:
        coefficient = coefficient_of(family, family.config({knob: width}))
        rng = numpy_generator("theory", width)
        for row in concentration(widest_cell(), coefficient, update_bound(width), NUM_SAMPLES, REPETITIONS, rng):
            strays.append({"sigma": width, **row._asdict()})
    left = []
    for name, settings in setup.settings:
        baseline = load_baseline(name)
        label = ", ".join([name, *(f"{field} {value:g}" for field, value in settings.items())])
        curve = curve_of(baseline, baseline.config(settings), torch.float32)
        left += [{"label": label, "baseline": name, **row._asdict()} for row in gradient_left(curve, DISTANCES)]
    return Theory(pl.DataFrame(peaks), pl.DataFrame(strays), pl.DataFrame(left))


def theory_words(theory: Theory) -> list[str]:
    """Returns what was found, every number computed."""
    family = published_study().family
    peaks, strays = theory.peaks, theory.concentration
    reached = float((peaks["coefficient"] / peaks["bound"]).to_numpy().min())
    too_large = int((peaks["coefficient"] > peaks["bound"] * (1 + ROUNDING)).sum())
    off_place = max(GRID_STEP, *(peaks["log_ratio"] - peaks["sigma"] ** 2).abs().to_list())
    ratios = {name: strays[name] / strays["deviation"] for name in ("hoeffding", "bernstein")}
    exceeded = sum(int((values < 1).sum()) for values in ratios.values())
    spans = {name.title(): (values.to_numpy().min(), values.to_numpy().max()) for name, values in ratios.items()}
    loose = listed([f"{low:.1f} to {high:.0f} times ({name})" for name, (low, high) in spans.items()])
    last = strays.filter(pl.col("n") == pl.col("n").max()).to_dicts()
    errors = listed([f"{row['error']:.2g} at sigma {row['sigma']:g}, the bias alone {row['bias']:.2g}" for row in last])
    widths = listed([f"{sigma:g}" for sigma in np.asarray(peaks["sigma"]).tolist()])
    return [
        f"The bound on an update: for widths of {widths} the largest coefficient of {family} lies within "
        f"{off_place:.0e} of l = sigma^2 and is at least {reached:.6f} of e^(sigma^2/2); it exceeds it at {too_large} "
        f"of {len(peaks)} widths.",
        f"Concentration: the distance of an average of N samples to its own mean (95 % quantile of {REPETITIONS:,} "
        f"repetitions) exceeds a bound in {exceeded} of {2 * len(strays)} comparisons; the bounds are {loose} as "
        f"large. They do not control the bias: at N = {last[0]['n']} the distance to the true gradient is {errors}.",
        _left_words(theory.left),
    ]


def _left_words(left: pl.DataFrame) -> str:
    family = published_study().family
    ends = []
    for (label,), rows in left.filter(pl.col("baseline") == family).group_by("label", maintain_order=True):
        beyond = [_last_distance(rows, column, 0.0) for column in ("above_threshold", "nonzero")]
        sigma = str(label).split()[-1]
        ends.append(f"{beyond[0]:.2g} and {beyond[1]:.2g} at sigma {sigma}")
    far = left.filter((pl.col("distance") == pl.col("distance").max()) & (pl.col("baseline") != family))
    others = [f"{label} {share:.0%}" for label, share in far.select("label", "nonzero").iter_rows()]
    return (
        f"Never zero: the coefficient of {family} is positive in exact arithmetic. In float32, for both signs of l and "
        f"A, the last |l| with a coefficient of at least {NEAR_ZERO:g}, and with any at all, are {listed(ends)}. At "
        f"|l| = {DISTANCES[-1]:g} the share of items with any gradient is: {', '.join(others)}."
    )


def _last_distance(rows: pl.DataFrame, column: str, share: float) -> float:
    kept = rows.filter(pl.col(column) > share)["distance"]
    return float(kept.max()) if len(kept) else 0.0  # type: ignore[arg-type]


def draw_theory(_: Material) -> list[Drawing]:
    """Figure 6c: the bound, the concentration around a biased mean, and where the gradient ends."""
    theory = measured_theory()
    figure, axes = plots.panels(2, 2, width=5.0, height=2.8)
    plots.peaks(axes[0, 0], theory.peaks)
    axes[0, 0].set_title("largest coefficient")
    axes[0, 0].set_xlabel("sigma")
    for panel, width in zip((axes[0, 1], axes[1, 0]), WIDTHS, strict=True):
        plots.concentration(panel, theory.concentration.filter(pl.col("sigma") == width))
        panel.set_title(f"averages of N samples, sigma {width:g}")
        panel.set_xlabel("number of samples N")
        panel.set_ylabel("95 % quantile of the distance")
    styles = _label_styles(theory.left)
    plots.gradient_left(axes[1, 1], theory.left, "above_threshold", styles)
    axes[1, 1].set_title(f"share of items with c of at least {NEAR_ZERO:g}, float32")
    axes[1, 1].set_xlabel("|l|")
    axes[1, 1].legend(frameon=False, fontsize=7.5, loc="lower left")
    family = published_study().family
    note = (
        f"{family}. Top right and bottom left: the published cell with the widest ratios, {REPETITIONS:,} repetitions; "
        "the thin line is the bias. Bottom right: both signs of l and of A count alike."
    )
    plots.add_note(figure, note)
    table = pl.concat([theory.peaks, theory.concentration, theory.left], how="diagonal_relaxed")
    return [Drawing("6-theory", "The theory, measured", note, figure, table)]


def _label_styles(left: pl.DataFrame) -> dict[str, plots.Style]:
    names = published_study().families
    found: dict[str, plots.Style] = {}
    used: dict[str, int] = {}
    for label, name in left.select("label", "baseline").unique(maintain_order=True).iter_rows():
        line = ("-", "--", "-.", ":", (0, (1, 3)))[used.setdefault(name, 0)]
        used[name] += 1
        found[label] = plots.Style(plots.styles({n: n for n in names}, list(names), "")[name].colour, "", line)
    return found
