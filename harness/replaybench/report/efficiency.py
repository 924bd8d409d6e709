"""Sample efficiency: success against steps and against cost, steps to a threshold, speed-up over the reference."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import polars as pl

from replaybench import plots
from replaybench.analysis.sample_efficiency import (
    PLACE,
    THRESHOLDS,
    against_literature,
    area_differences,
    areas,
    median_steps,
    speed_ups,
    steps_to,
)
from replaybench.by_steps import curves_by_steps, points_by_steps
from replaybench.report.aggregates import scores_of
from replaybench.report.cells import Cell, Table, number, verdict_cell
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material, listed_runs
from replaybench.report.words import from_to, plain, with_interval
from replaybench.results import lineage_intervals


class Efficiency(NamedTuple):
    """curves by steps; areas with differences; median steps and speed-ups with a column `threshold`."""

    curves: pl.DataFrame
    areas: pl.DataFrame
    medians: pl.DataFrame
    speed_ups: pl.DataFrame


@lru_cache(maxsize=1)
def efficiency_of(material: Material) -> Efficiency | None:
    """Returns the analysis, or None where no curve has enough points."""
    if scores_of(material) is None:
        return None
    control = material.success.filter(pl.col("baseline") == material.sweep.control).drop_nulls("value")
    start = dict(control.group_by("dataset").agg(pl.col("value").mean()).iter_rows())
    curves = curves_by_steps(material.measured, material.sweep, {name: one for name, one in start.items() if one < 1})
    if curves.is_empty():
        return None
    reference = material.sweep.reference
    reached = {threshold: steps_to(curves, threshold) for threshold in THRESHOLDS}
    return Efficiency(
        curves=curves,
        areas=area_differences(areas(curves), reference),
        medians=_stacked({threshold: median_steps(found) for threshold, found in reached.items()}),
        speed_ups=_stacked({threshold: speed_ups(found, reference) for threshold, found in reached.items()}),
    )


def _stacked(tables: dict[float, pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(
        [table.select(pl.lit(threshold).alias("threshold"), pl.all()) for threshold, table in tables.items()]
    )


def efficiency_tables(material: Material) -> list[Table]:
    """Returns the tables of the section for the page."""
    found = efficiency_of(material)
    if found is None:
        return []
    reference = material.sweep.reference
    areas_rows = [
        [
            Cell(row["design"], row["design"]),
            Cell(row["level"], row["level"]),
            Cell(row["baseline"], row["baseline"], "name"),
            Cell(with_interval({**row, "estimate": row["area"]}, plain), row["area"], "number"),
            _area_difference(row),
            number(row["n"], "d"),
        ]
        for row in found.areas.to_dicts()
    ]
    headings = ["curve", "level", "baseline", "mean score over the steps", f"difference to {reference}", "n"]
    note = "Area under the curve of the score, by trapezoids from (0, 0), over its last step. Holm over all rows."
    tables = [Table("areas", "Area under the curve", headings, areas_rows, note, "areas")]
    rows = [
        [
            Cell(row["design"], row["design"]),
            Cell(row["level"], row["level"]),
            number(row["threshold"], "g"),
            Cell(row["baseline"], row["baseline"], "name"),
            Cell(_steps_words(row), "" if row["median"] is None else row["median"], "number"),
            Cell(f"{row['num_reached']} of {row['n']}", row["num_reached"], "number"),
        ]
        for row in found.medians.to_dicts()
    ]
    headings = ["curve", "level", "score", "baseline", "median steps, 95 % interval", "reached"]
    note = (
        "Kaplan-Meier over lineages, log-log interval: a lineage that never reaches the score counts as longer than "
        "its curve, not as missing."
    )
    return [*tables, Table("steps-to", "Steps to a score", headings, rows, note, "steps-to")]


def _area_difference(row: dict[str, Any]) -> Cell:
    if row["difference"] is None:
        return Cell("reference", "", "unresolved")
    shown = {"estimate": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}
    return verdict_cell({**row, **shown}, with_interval)


def _steps_words(row: dict[str, Any]) -> str:
    median, low, high = ("-" if row[name] is None else f"{row[name]:.0f}" for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]" if row["median"] is not None else "not reached by half"


def efficiency_frames(material: Material) -> dict[str, pl.DataFrame]:
    """Returns the tables of the section, or nothing."""
    found = efficiency_of(material)
    if found is None:
        return {}
    return {"areas": found.areas, "steps-to": found.medians, "speed-up": found.speed_ups}


def literature_words(material: Material) -> list[str]:
    """Returns a heading and, for each baseline, what is left of the published speed-up on the stalest level."""
    found = efficiency_of(material)
    if found is None:
        return []
    rows = found.speed_ups.filter(pl.col("threshold") == THRESHOLDS[0])
    levels = _levels(material, rows)
    if not levels:
        return []
    heading = f"Steps to a score of {THRESHOLDS[0]:g} on {levels[-1]}, as a speed-up over {material.sweep.reference}:"
    stalest = rows.filter(pl.col("level") == levels[-1])
    return [heading] + [
        f"{row['baseline']} ({row['design']}): {against_literature(row)}" for row in stalest.iter_rows(named=True)
    ]


def _levels(material: Material, table: pl.DataFrame) -> list[str]:
    """Returns the levels of a table from fresh to stale; as planned where the report's levels carry a log size."""
    known = dict.fromkeys([*material.look.levels, *material.sweep.spec.level_names()])
    return [level for level in known if level in set(table["level"])]


def draw_curves(material: Material) -> list[Drawing]:
    """Figure 11: success against environment steps."""
    found = efficiency_of(material)
    if found is None:
        return []
    curves = found.curves
    place = [*PLACE, "dataset", "baseline", "steps"]
    points = curves.select(*place, "lineage", "value", "runs")
    behind = points.select(*place, run_id=pl.col("runs").str.split("\n")).explode("run_id")
    intervals = (
        lineage_intervals(points, place)
        .with_columns(kind=pl.lit(plots.MEAN), lineage=pl.lit(None, pl.Int64))
        .join(behind.group_by(place).agg(runs=listed_runs()), on=place, how="left", maintain_order="left")
    )
    dots = points.with_columns(
        low=pl.lit(None, pl.Float64),
        high=pl.lit(None, pl.Float64),
        n=pl.lit(1, pl.Int64),
        kind=pl.lit(plots.LINEAGE_DOT),
    )
    columns = [*place, "kind", "lineage", "value", "low", "high", "n", "runs"]
    table = pl.concat([intervals.select(columns), dots.select(columns)])
    levels = _levels(material, table)
    panels = sorted(table.select(PLACE).unique().iter_rows(), key=lambda row: (row[0], levels.index(row[1])))
    datasets = sorted(table["dataset"].unique())
    figure, axes = plots.panels(len(panels), len(datasets), width=3.6, height=2.5, share_y="col")
    for i, (design, level) in enumerate(panels):
        for j, dataset in enumerate(datasets):
            here = (pl.col("design") == design) & (pl.col("level") == level) & (pl.col("dataset") == dataset)
            shown = table.filter(here)
            plots.metric_over_updates(axes[i, j], shown.rename({"steps": "update"}), material.look)
            axes[i, j].set_title(f"{dataset}, {level}\n{design}", fontsize=8.5)
            _mark_start(material, axes[i, j], dataset)
            # A wide interval of few lineages is cut at what a success can be.
            axes[i, j].set_ylim(-0.03, 1.03)
        axes[i, 0].set_ylabel("success")
    for panel in axes[-1]:
        panel.set_xlabel("environment steps")
    counts = table.filter(pl.col("kind") == plots.MEAN)["n"]
    note = (
        f"Mean over n = {from_to(counts.min() or 0, counts.max() or 0)} lineages; bands: 95 % t interval; "  # type: ignore[arg-type]
        "dots: lineages at the largest size. Grey: the start policies."
    )
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    caption = (
        f"{note} Along a curve only the environment steps vary, and what is held fixed stands above it. Under the "
        "logged protocol each point is a training of its own, from the same start, on a log of that size."
    )
    return [Drawing("11-sample-efficiency", "Success against environment steps", caption, figure, table)]


def _mark_start(material: Material, axes: object, dataset: str) -> None:
    control = material.summary.filter(pl.col("level").is_null() & (pl.col("dataset") == dataset))
    for value in control["estimate"].drop_nulls():
        axes.axhline(value, color=plots.GREY, linestyle="--", linewidth=1.1, zorder=1)  # type: ignore[attr-defined]


def draw_speed_ups(material: Material) -> list[Drawing]:
    """Figure 12: the speed-up over the reference."""
    found = efficiency_of(material)
    if found is None:
        return []
    table = found.speed_ups
    reference = material.sweep.reference
    panels = sorted(table.select("threshold", *PLACE).unique().iter_rows())
    rows = table["threshold"].n_unique()
    columns = -(-len(panels) // rows)
    arms = table["baseline"].n_unique()
    figure, axes = plots.panels(rows, columns, width=3.4, height=0.9 + 0.3 * arms, share_y=True)
    ends = [v for name in ("low", "high", "estimate_low") for v in table[name] if 0 < v < math.inf]
    span = 1.3 * max([2.0, *ends, *(1 / v for v in ends)])
    for panel, (threshold, design, level) in zip(axes.flat, panels, strict=True):
        here = (pl.col("threshold") == threshold) & (pl.col("design") == design) & (pl.col("level") == level)
        plots.speed_up_forest(panel, table.filter(here), material.look, span)
        panel.set_title(f"{level}, to a score of {threshold:g}\n{design}", fontsize=8.5)
    for panel in axes[-1]:
        panel.set_xlabel(f"times fewer steps than {reference}")
    counts = sorted(set(table["n"]))
    note = (
        f"Median ratio of steps over n = {from_to(counts[0], counts[-1])} lineages paired with {reference}, and its 95 "
        "% sign-test interval. Arrow: not bounded on that side, because curves end before the score is reached."
    )
    plots.finish(figure, material.look, [], note)
    caption = (
        f"{note} Right of the line is faster than {reference}. A bar without a marker: too many pairs are censored for "
        "a median. Score: 0 start policy, 1 expert."
    )
    return [Drawing("12-speed-up", f"Speed-up over {reference}", caption, figure, table)]


def draw_costs(material: Material) -> list[Drawing]:
    """Figure 13: success against total cost, where collecting is traded against learning in two ways or more."""
    price = material.collect_cost
    if price is None:
        return []
    points = points_by_steps(material.measured, material.sweep).with_columns(
        cost=pl.col("learner_samples") + price * pl.col("steps")
    )
    place = ["dataset", "level", "baseline", "steps", "learner_samples", "cost"]
    if points["cost"].n_unique() < 2:
        return []
    means = points.group_by(*place, "lineage").agg(pl.col("value").mean())
    table = lineage_intervals(means, place)
    levels = _levels(material, table)
    datasets = sorted(table["dataset"].unique())
    figure, axes = plots.panels(len(datasets), len(levels), width=3.2, height=2.5, share_y="row")
    for i, dataset in enumerate(datasets):
        for j, level in enumerate(levels):
            here = (pl.col("dataset") == dataset) & (pl.col("level") == level)
            plots.success_by_cost(axes[i, j], table.filter(here), material.look)
            axes[i, j].set_title(f"{dataset}, {level}", fontsize=8.5)
            _mark_start(material, axes[i, j], dataset)
        axes[i, 0].set_ylabel("success")
    for panel in axes[-1]:
        panel.set_xlabel("cost in learner samples")
    note = (
        f"Cost: learner samples + {price:.3g} x environment steps; {material.cost_words}. Bars: 95 % t interval over "
        "lineages. Grey: the start policies."
    )
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    caption = (
        f"{note} More reuse costs learner samples and saves steps; which pays depends on what a step costs. Set "
        "another price with `replaybench report build DIR --collect-cost Q`."
    )
    return [Drawing("13-cost", "Success against total cost", caption, figure, table)]
