"""Success and exact error along each correction's knob, the settings that may be best, and equal distances."""

from functools import lru_cache

import polars as pl

from replaybench import plots
from replaybench.analysis.bias_variance import ZERO, cell_rows, lag_cells
from replaybench.analysis.distance import distance_differences
from replaybench.analysis.optimum import optimum_sets
from replaybench.baseline import baseline_paths, load_baseline
from replaybench.report.cells import Cell, Table, number, verdict_cell
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material, n_words
from replaybench.report.sensitivity import arms_frame, has_several_settings
from replaybench.report.words import listed, plain, pooled, short, with_n
from replaybench.results import lineage_means, metric_rows, short_power
from replaybench.study import knob_curve, published_study

LAGS_SHOWN = (1, 8, 32, 64)
SAMPLES = 64
DISTANCE = "end_kl_start"


def draw_success_along_knobs(material: Material) -> list[Drawing]:
    """Figure 8b: success along the knob at each level."""
    table = success_frame(material)
    if table.is_empty():
        return []
    families, levels = sorted(table["family"].unique()), material.look.levels
    styles = plots.styles({name: name for name in families}, list(baseline_paths()), material.sweep.control)
    figure, axes = plots.panels(len(families), len(levels), width=2.9, height=2.1, share_x="row", share_y=True)
    for i, family in enumerate(families):
        for j, level in enumerate(levels):
            here = table.filter((pl.col("family") == family) & (pl.col("level") == level))
            plots.along_knob(axes[i, j], here, styles[family], "series")
            axes[i, j].set_title(f"{family}, {level}", fontsize=8.5)
        axes[i, 0].set_ylabel("success")
        for panel in axes[i]:
            panel.set_xlabel(str(table.filter(pl.col("family") == family)["knob"][0]))
        axes[i, -1].legend(frameon=False, fontsize=6.5)
    note = (
        f"Mean over lineages, {n_words(material)}, every task with equal weight. Filled: may be the correction's best "
        "setting on that level and replay ratio, at 95 % confidence; hollow: resolved worse than another one."
    )
    plots.add_note(figure, note)
    return [Drawing("8-knobs", "Success along the knob", note, figure, table)]


def success_frame(material: Material) -> pl.DataFrame:
    """Returns every arm that has a knob with its success, and whether it may be the best of its correction."""
    arms = arms_frame(material)
    if not has_several_settings(arms):
        return optimum_sets(material.success.clear(), arms).with_columns(series=pl.lit(""))
    found = optimum_sets(material.success, arms.drop_nulls("knob_value"))
    rate = pl.col("learning_rate").map_elements(short_power, return_dtype=pl.String)
    ratio = pl.col("replay_ratio").map_elements("{:g}".format, return_dtype=pl.String)
    return found.with_columns(series=pl.format("lr {}, R {}", rate, ratio))


def draw_errors_along_knobs(_: Material) -> list[Drawing]:
    """Figure 6d: the exact error along the knob at each lag."""
    table = error_frame()
    families = table["family"].unique(maintain_order=True).to_list()
    styles = plots.styles({name: name for name in families}, list(baseline_paths()), ZERO)
    figure, axes = plots.panels(1, len(families), width=3.7, height=2.8, share_y=True)
    for panel, family in zip(axes[0], families, strict=True):
        here = table.filter(pl.col("family") == family)
        plots.along_knob(panel, here, styles[family], "series")
        panel.set_title(family)
        panel.set_xlabel(here["knob"][0])
        panel.set_yscale("log")
        panel.legend(frameon=False, fontsize=7.5)
    axes[0, 0].set_ylabel("MSE / MSE of not moving")
    note = (
        f"Exact, 2x2 GridWorld, averages of {SAMPLES} samples; the behaviour policy is the target some policy-gradient "
        "steps earlier. Dot: the knob of least error."
    )
    plots.add_note(figure, note)
    return [Drawing("6-knobs", "Exact error along the knob", note, figure, table)]


@lru_cache(maxsize=1)
def error_frame() -> pl.DataFrame:
    """Returns the exact MSE along the knob of the published families at each lag, relative to that of not moving."""
    rows = []
    for family in published_study().families:
        declared = load_baseline(family).declaration.knob
        if declared is None:
            continue
        for cell in lag_cells(LAGS_SHOWN):
            found = cell_rows(cell, knob_curve(family), (SAMPLES,))
            nothing = next(row.mse for row in found if row.baseline == ZERO)
            of_family = [row for row in found if row.baseline == family]
            least = min(of_family, key=lambda row: row.mse)
            rows += [
                (family, declared.field, cell.behaviour, row.config[declared.field], row.mse / nothing, row is least)
                for row in of_family
            ]
    return pl.DataFrame(
        rows, schema=["family", "knob", "series", "knob_value", "estimate", "may_be_best"], orient="row"
    )


def knob_words() -> str:
    """Returns the knob of least exact error by lag."""
    best = error_frame().filter("may_be_best")
    parts = []
    for (family, knob), rows in best.group_by("family", "knob", maintain_order=True):
        settings = [f"{short(value)} at {lag}" for value, lag in rows.select("knob_value", "series").iter_rows()]
        parts.append(f"{family}'s {knob} is {listed(settings)}")
    return f"The setting of least exact error at {SAMPLES} samples moves with the lag: {'; '.join(parts)}."


def knob_frames(material: Material) -> dict[str, pl.DataFrame]:
    """Returns the tables of this part that are written as CSV, where the sweep has several settings of a correction."""
    frames = {"optimum": success_frame(material), "distance": distance_frame(material)}
    return {name: frame for name, frame in frames.items() if len(frame)}


def optimum_table(material: Material) -> Table:
    """Returns the best setting of each correction by level, with the settings that may be best."""
    rows = []
    for (ratio, level, family), arms in success_frame(material).group_by(
        "replay_ratio", "level", "family", maintain_order=True
    ):
        best, plausible = arms.row(by_predicate=pl.col("is_best"), named=True), arms.filter("may_be_best")
        values = plausible["knob_value"].unique().sort().to_list()
        rates = plausible["learning_rate"].unique().sort().to_list()
        rows.append(
            [
                Cell(str(family), str(family), "name"),
                Cell(str(level), str(level)),
                number(ratio, "g"),
                number(best["knob_value"], "g"),
                number(best["learning_rate"], "g"),
                Cell(plain(best["estimate"]), best["estimate"], "number"),
                Cell(_span(values), values[0]),
                Cell(", ".join(short_power(rate) for rate in rates), rates[0]),
                Cell(f"{len(plausible)} of {len(arms)}", len(plausible) / len(arms)),
            ]
        )
    headings = ["baseline", "level", "replay ratio", "best knob", "its learning rate", "success"]
    headings += ["knob, 95 % set", "learning rates in the set", "settings in the set"]
    note = (
        "The set holds every setting that is not resolved worse than another one of the correction (paired t tests, "
        "Bonferroni); the truly best one is in it with 95 % confidence."
    )
    return Table("optimum", "Best setting by level", headings, rows, note, "optimum")


def _span(values: list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


@lru_cache(maxsize=1)
def distance_frame(material: Material) -> pl.DataFrame:
    """Returns the differences to the reference at equal distance to the start policy; empty for one setting each."""
    arms = arms_frame(material)
    place = ["dataset", "task", "level", "replay_ratio", "baseline"]
    rows = metric_rows(material.measured, [DISTANCE])
    success = material.success.drop_nulls("value")
    start = success.filter(pl.col("level").is_null()).group_by("dataset", "task", "lineage")
    if not has_several_settings(arms) or rows.is_empty():
        return distance_differences(_points(), "")
    points = (
        lineage_means(rows, place)
        .rename({"value": "distance"})
        .join(lineage_means(success.filter(pl.col("level").is_not_null()), place), on=[*place, "lineage"])
        .join(start.agg(start=pl.col("value").mean()), on=["dataset", "task", "lineage"])
        .join(arms.select("baseline", "family"), on="baseline")
    )
    return distance_differences(points, material.sweep.spec.reference)


def _points() -> pl.DataFrame:
    names = {"dataset": pl.String, "task": pl.String, "lineage": pl.Int64, "level": pl.String}
    numbers = {"replay_ratio": pl.Float64, "distance": pl.Float64, "value": pl.Float64, "start": pl.Float64}
    return pl.DataFrame(schema={**names, **numbers, "family": pl.String})


def distance_table(material: Material) -> Table:
    """Returns the pooled differences at equal distance, one row a distance and correction."""
    table = pooled(distance_frame(material))
    rows = []
    for (distance,), block in table.group_by("distance", maintain_order=True):
        found = {(row["baseline"], row["replay_ratio"], row["level"]): row for row in block.to_dicts()}
        for family in sorted({key[0] for key in found}):
            row = [Cell(f"{distance:g}", float(distance), "number"), Cell(family, family, "name")]
            for setting in material.settings:
                cell = found.get((family, *setting))
                row.append(verdict_cell(cell, with_n) if cell and cell["n"] else Cell("not reached"))
            rows.append(row)
    headings = ["KL(start || end)", "baseline", *(f"{level}, R {ratio:g}" for ratio, level in material.settings)]
    title = f"Difference to {material.sweep.spec.reference} at equal distance to the start"
    note = (
        "Interpolated within each lineage between the start policy and the settings of a correction; lineages on which "
        "either did not move as far are left out, nothing is extrapolated. Holm's adjustment is over a distance's rows."
    )
    return Table("distance", title, headings, rows, note, "distance")
