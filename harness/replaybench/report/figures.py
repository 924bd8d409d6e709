"""Each figure with the table that it shows and its caption."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import polars as pl

from replaybench import plots
from replaybench.analysis.bias_variance import ZERO, StudyCell, StudyRow, pareto_frontier, widest_cell
from replaybench.analysis.compare import POOLED, cell_means
from replaybench.baseline import baseline_paths, load_baseline
from replaybench.errors import unknown_name
from replaybench.report.ages import draw_ages
from replaybench.report.aggregates import draw_profiles
from replaybench.report.drawing import Drawing
from replaybench.report.efficiency import draw_costs, draw_curves, draw_speed_ups
from replaybench.report.gradients import draw_gradient_errors, draw_gradients_along_knobs
from replaybench.report.gridworld import draw_study
from replaybench.report.knobs import draw_errors_along_knobs, draw_success_along_knobs
from replaybench.report.material import Material, loaded_baseline, n_words, with_runs
from replaybench.report.sensitivity import draw_sensitivity
from replaybench.report.theory import draw_theory
from replaybench.report.weights import draw_gallery, draw_weights
from replaybench.report.words import counted, from_to, mean_fact, short
from replaybench.results import lineage_intervals, lineage_means, metric_rows
from replaybench.study import gridworld_rows

DIAGNOSTICS = {
    "ess_token_raw": "ESS share (token)",
    "near_zero_share_positive": "near-zero share, A > 0",
    "near_zero_share_negative": "near-zero share, A < 0",
    "kl_k3_token_raw": "KL to behaviour (k3)",
    "score_share_back": "share of |h| that moves back",
    "grad_norm": "gradient norm",
}


TO_BEHAVIOUR, TO_START = "end_kl_k3_behaviour", "end_kl_start"


LEVEL_MEASURES = {
    "kl": "KL(mu || start), nats",
    "ess_token": "ESS share, token",
    "ess_joint": "ESS share, joint (step)",
    "success": "success of the behaviour policy",
    "abs_log_ratio_p95_token": "P95 of |l|, token",
    "abs_log_ratio_p95_joint": "P95 of |l|, joint (step)",
}


STUDY_NS = (1, 16, 256)


def draw_success(material: Material) -> list[Drawing]:
    """Figure 1: success after training against the freshness level."""
    table = success_table(material)
    ratios, datasets = material.sweep.spec.ratios(), material.datasets
    arms = len(material.look.styles) - 1
    width = max(3.8, 0.17 * arms * len(material.look.levels))
    figure, axes = plots.panels(len(ratios), len(datasets), width=width, height=2.9, share_y="col")
    for i, ratio in enumerate(ratios):
        for j, dataset in enumerate(datasets):
            chosen = (pl.col("dataset") == dataset) & (pl.col("replay_ratio").eq(ratio) | pl.col("level").is_null())
            plots.success_by_level(axes[i, j], table.filter(chosen), _with_ticks(material, dataset))
            axes[i, j].set_title(f"{dataset}, replay ratio {ratio:g}")
        axes[i, 0].set_ylabel("success after training")
    for j, dataset in enumerate(datasets):
        plots.show_all_success(list(axes[:, j]), table.filter(pl.col("dataset") == dataset))
    note = f"Bars and grey band: mean over {_lineages(table)} with 95 % t interval. Dots: lineages, seeds averaged."
    plots.finish(figure, material.look, list(material.look.styles), note)
    order = "" if material.facts.frame.is_empty() else "Levels in order of measured KL(mu||start)."
    caption = (
        f"{note} {order} Grey dashed line: the start policy, untrained. "
        "Lineages differ from each other, so overlapping bars do not decide a comparison; the paired differences do."
    )
    return [Drawing("1-success", "Success after training", caption, figure, table)]


def success_table(material: Material) -> pl.DataFrame:
    """Returns what figure 1 draws: means with intervals, and the lineages' values."""
    place = ["dataset", "replay_ratio", "level", "baseline"]
    means = material.summary.filter(pl.col("dataset") != POOLED).select(
        *place, kind=pl.lit(plots.MEAN), lineage=pl.lit(None, pl.Int64), value="estimate", low="low", high="high", n="n"
    )
    dots = _dots(cell_means(material.success), place)
    return with_runs(material, pl.concat([means, dots]))


def _dots(means: pl.DataFrame, place: Sequence[str]) -> pl.DataFrame:
    nothing = pl.lit(None, pl.Float64)
    return means.select(
        *place,
        kind=pl.lit(plots.LINEAGE_DOT),
        lineage="lineage",
        value="value",
        low=nothing,
        high=nothing,
        n=pl.lit(1, pl.Int64),
    )


def _lineages(table: pl.DataFrame) -> str:
    counts = table.filter(pl.col("kind") == plots.MEAN)["n"]
    return f"n = {from_to(counts.min() or 0, counts.max() or 0)} lineages"  # type: ignore[arg-type]


def _with_ticks(material: Material, dataset: str) -> plots.Look:
    ticks = {}
    for level in material.look.levels:
        distance = mean_fact(material.facts.frame, "kl", level, dataset)
        ticks[level] = level if distance is None else f"{level}\nKL {short(distance)}"
    return material.look._replace(ticks=ticks)


def draw_differences(material: Material) -> list[Drawing]:
    """Figure 2: paired differences to the reference."""
    table = with_runs(material, material.differences)
    if len(material.datasets) == 1:
        table = table.filter(pl.col("dataset") == POOLED)
    ratios, levels = material.sweep.spec.ratios(), material.look.levels
    arms = len(material.look.styles) - 1
    figure, axes = plots.panels(
        len(ratios), len(levels), width=2.6, height=0.6 + 0.3 * arms, share_x=True, share_y=True
    )
    for i, ratio in enumerate(ratios):
        for j, level in enumerate(levels):
            chosen = (pl.col("replay_ratio") == ratio) & (pl.col("level") == level)
            plots.difference_forest(axes[i, j], table.filter(chosen), material.look)
            axes[i, j].set_title(f"{level}, replay ratio {ratio:g}")
    ends = [abs(v) for v in [*table["low"].drop_nulls(), *table["high"].drop_nulls(), *table["estimate"].drop_nulls()]]
    limit = min(1.0, 1.05 * max(ends, default=1.0) or 1.0)
    axes[0, 0].set_xlim(-limit, limit)
    reference = material.sweep.reference
    below = " and below it, smaller, each data set" if len(material.datasets) > 1 else ""
    note = (
        f"Success minus that of {reference}, paired within the lineage: pooled mean{below}, with 95 % t interval; "
        f"{n_words(material)} pooled. Filled and thick: resolved after Holm's adjustment."
    )
    plots.finish(figure, material.look, [], note)
    caption = (
        f"{note} Right of the line is better than {reference}. Hollow: no difference resolved. An interval is that of "
        "one comparison and can exclude 0 where the adjusted verdict resolves nothing."
    )
    return [Drawing("2-differences", f"Difference to {reference}", caption, figure, table)]


def draw_diagnostics(material: Material) -> list[Drawing]:
    """Figure 3: training diagnostics over updates, one figure for each data set and replay ratio."""
    rows = metric_rows(material.measured, list(DIAGNOSTICS))
    place = ["dataset", "replay_ratio", "level", "baseline", "metric", "update"]
    means = lineage_means(rows, place)
    intervals = lineage_intervals(means, place).select(
        *place, kind=pl.lit(plots.MEAN), lineage=pl.lit(None, pl.Int64), value="value", low="low", high="high", n="n"
    )
    last = means.filter(pl.col("update") == pl.col("update").max().over("dataset", "replay_ratio", "level"))
    table = with_runs(material, pl.concat([intervals, _dots(last, place)]))
    drawings = []
    for dataset in material.datasets:
        for ratio in material.sweep.spec.ratios():
            chosen = table.filter((pl.col("dataset") == dataset) & (pl.col("replay_ratio") == ratio))
            if not chosen.is_empty():
                drawings.append(_draw_diagnostics_of(material, dataset, ratio, chosen))
    return drawings


def _draw_diagnostics_of(material: Material, dataset: str, ratio: float, table: pl.DataFrame) -> Drawing:
    levels = material.look.levels
    figure, axes = plots.panels(len(DIAGNOSTICS), len(levels), width=2.9, height=1.75)
    for i, (metric, name) in enumerate(DIAGNOSTICS.items()):
        of_metric = table.filter(pl.col("metric") == metric)
        for j, level in enumerate(levels):
            plots.metric_over_updates(axes[i, j], of_metric.filter(pl.col("level") == level), material.look)
            if i == 0:
                axes[i, j].set_title(level)
        plots.zoom_to_values(list(axes[i]), of_metric)
        axes[i, 0].set_ylabel(name)
    # Axes that share a scale are brought in line again with every mark that is added to one of them.
    last = float(table["update"].max())  # type: ignore[arg-type]
    for panel in axes.flat:
        panel.set_xlim(-0.03 * last, 1.03 * last)
        panel.tick_params(labelbottom=panel in axes[-1])
    for panel in axes[-1]:
        panel.set_xlabel("updates")
    note = (
        f"{dataset}, replay ratio {ratio:g}: mean over {_lineages(table)}; bands: 95 % t interval, cut at the range of "
        "the values; dots: lineages at the last update. One minibatch a point."
    )
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    caption = (
        f"{note} ESS share: (sum rho)^2 / (N sum rho^2) of raw ratios. Near-zero share: items of that sign of the "
        "advantage whose weight is below 0.001. Share that moves back: of sum |h|, from items whose gradient takes "
        "log pi towards log mu; 0.5 is no preference. Gradient norm before clipping."
    )
    return Drawing(f"3-diagnostics-{dataset}-R{ratio:g}", f"{dataset}, replay ratio {ratio:g}", caption, figure, table)


def draw_distances(material: Material) -> list[Drawing]:
    """Figure 4: where the policy went, away from the start policy and away from the behaviour policy."""
    rows = metric_rows(material.measured, [TO_BEHAVIOUR, TO_START])
    if rows.is_empty():
        return []
    table = with_runs(material, _distance_table(rows))
    settings = [(d, r) for d in material.datasets for r in material.sweep.spec.ratios()]
    levels = material.look.levels
    figure, axes = plots.panels(len(settings), len(levels), width=2.9, height=2.5, share_x=True, share_y=True)
    for i, (dataset, ratio) in enumerate(settings):
        for j, level in enumerate(levels):
            chosen = (pl.col("dataset") == dataset) & (pl.col("replay_ratio") == ratio) & (pl.col("level") == level)
            plots.distances(axes[i, j], table.filter(chosen), material.look)
            axes[i, j].set_title(f"{dataset}\n{level}, replay ratio {ratio:g}", fontsize=8.5)
        axes[i, 0].set_ylabel("KL(start || end)")
    plots.log_where_positive(list(axes.flat), table, TO_BEHAVIOUR, TO_START)
    for panel in axes[-1]:
        panel.set_xlabel("KL(behaviour || end), k3")
    counts = table.filter(pl.col("kind") == plots.MEAN)["n"]
    note = (
        f"Mean KL of an action token on the replayed states after the last update, nats. Large: mean over "
        f"n = {from_to(counts.min() or 0, counts.max() or 0)} lineages; dots: lineages."  # type: ignore[arg-type]
    )
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    caption = (
        f"{note} Up: the policy moved away from where it started. Right: it is far from the policy that made the log. "
        "A small distance to the log alone is no sign of stability: a policy can walk back to an older one."
    )
    return [Drawing("4-distances", "Where the policy went", caption, figure, table)]


def _distance_table(rows: pl.DataFrame) -> pl.DataFrame:
    place = ["dataset", "replay_ratio", "level", "baseline"]
    wide = lineage_means(rows, [*place, "metric"]).pivot(on="metric", index=[*place, "lineage"], values="value")
    dots = wide.select(*place, "lineage", TO_BEHAVIOUR, TO_START, kind=pl.lit(plots.LINEAGE_DOT), n=pl.lit(1, pl.Int64))
    means = wide.group_by(place).agg(pl.col(TO_BEHAVIOUR, TO_START).mean(), n=pl.len().cast(pl.Int64))
    means = means.with_columns(kind=pl.lit(plots.MEAN), lineage=pl.lit(None, pl.Int64)).select(dots.columns)
    return pl.concat([means, dots]).sort(*place, "kind", "lineage", nulls_last=True)


def draw_bias_variance(material: Material) -> list[Drawing]:
    """Figure 6: the exact bias-variance frontier of the GridWorld study's cell with the widest ratios."""
    cell = widest_cell()
    table = _study_table(material, cell)
    names = sorted(set(table["baseline"]), key=lambda name: (name != ZERO, name))
    look = material.look._replace(styles=plots.styles({name: name for name in names}, list(baseline_paths()), ZERO))
    figure, axes = plots.panels(1, len(STUDY_NS), width=3.5, height=3.0)
    for panel, n in zip(axes[0], STUDY_NS, strict=True):
        of_n = table.filter(pl.col("n") == n)
        plots.bias_variance(panel, of_n, look)
        plots.linear_near_zero(panel, of_n, "bias2", "variance")
        panel.set_title(counted(n, "sample"))
        panel.set_xlabel("squared bias")
    axes[0, 0].set_ylabel("variance")
    note = (
        f"Exact, nothing sampled: 2x2 GridWorld, target {cell.target}, behaviour {cell.behaviour}. Filled: on the "
        "Pareto frontier. Lines follow a baseline's knob. Axes: logarithmic, linear near 0."
    )
    plots.finish(figure, look, names, note)
    ratios = ", ".join(f"{ratio:.2f}" for ratio in cell.target_K / cell.behaviour_K)
    caption = (
        f"{note} One action is drawn in the start state; the ratios pi/mu of its four actions are {ratios}, the widest "
        "of the study's cells. Bias is against plain importance sampling; the estimator that is always 0 takes part. "
        "Baselines at their defaults and along their knob, not at this sweep's settings."
    )
    return [Drawing("6-bias-variance", "Bias and variance of the gradient estimator", caption, figure, table)]


def _study_table(material: Material, cell: StudyCell) -> pl.DataFrame:
    paths = {run.baseline_path for run in material.sweep.runs if run.baseline_path and loaded_baseline(run)}
    used = {run.baseline for run in material.sweep.runs} | {ZERO}
    rows = [
        StudyRow(**row)
        for row in gridworld_rows(tuple(sorted(paths)))
        if (row["target"], row["behaviour"]) == (cell.target, cell.behaviour)
        if row["n"] in STUDY_NS and row["baseline"] in used
    ]
    knobs = _knobs([*used, *paths])
    rows.sort(key=lambda row: (row.n, row.baseline, row.config.get(knobs.get(row.baseline, ""), 0.0)))
    records = [
        row._asdict() | {"config": json.dumps(row.config, sort_keys=True), "is_frontier": is_frontier}
        for row, is_frontier in zip(rows, pareto_frontier(rows), strict=True)
    ]
    return pl.DataFrame(records, infer_schema_length=None)


def _knobs(names: Sequence[str]) -> dict[str, str]:
    """Returns the field that is the knob of each baseline that has one and is on disk."""
    found = {}
    for name in names:
        if name in baseline_paths() or name.endswith(".py"):
            baseline = load_baseline(name)
            if baseline.declaration.knob:
                found[baseline.name] = baseline.declaration.knob.field
    return found


def draw_levels(material: Material) -> list[Drawing]:
    """Figure 7: how off-policy each freshness level is."""
    rows = material.facts.frame.filter(pl.col("metric").is_in(list(LEVEL_MEASURES)))
    if rows.is_empty():
        return []
    place = ["dataset", "level", "metric"]
    means = lineage_means(rows, place)
    intervals = lineage_intervals(means, place).select(
        *place, kind=pl.lit(plots.MEAN), lineage=pl.lit(None, pl.Int64), value="value", low="low", high="high", n="n"
    )
    table = pl.concat([intervals, _dots(means, place)])
    # A log made elsewhere may state less than our own.
    shown = [metric for metric in LEVEL_MEASURES if metric in set(table["metric"])]
    columns = min(3, len(shown))
    width = max(3.1, 0.75 * len(material.look.levels))
    figure, axes = plots.panels(-(-len(shown) // columns), columns, width=width, height=2.3)
    for panel, metric in zip_longest(axes.flat, shown):
        if metric is None:
            panel.set_axis_off()
            continue
        plots.level_measure(panel, table.filter(pl.col("metric") == metric), material.look, material.datasets)
        panel.set_title(LEVEL_MEASURES[metric])
        panel.set_ylabel("")
    note = f"Bars: mean over {_lineages(table)} with 95 % t interval. Dots: lineages. l = log start - log mu."
    plots.finish(figure, material.look, [], note)
    figure.legend(handles=plots.dataset_handles(material.datasets), loc="outside upper left", ncols=4, frameon=False)
    caption = f"{note} Measured on the whole log of each level against the start policy, before any training."
    return [Drawing("7-levels", "Off-policyness of each level", caption, figure, table)]


# By what the names of its figures start with.
DRAWERS: dict[str, Callable[[Material], list[Drawing]]] = {
    "1-success": draw_success,
    "2-differences": draw_differences,
    "3-ages": draw_ages,
    "3-diagnostics": draw_diagnostics,
    "4-distances": draw_distances,
    "5-weights": draw_weights,
    "6-bias-variance": draw_bias_variance,
    "6-gradients": draw_gradient_errors,
    "6-gradients-along-knobs": draw_gradients_along_knobs,
    "6-knobs": draw_errors_along_knobs,
    "6-study": draw_study,
    "6-theory": draw_theory,
    "7-levels": draw_levels,
    "8-knobs": draw_success_along_knobs,
    "8-sensitivity": draw_sensitivity,
    "9-gallery-of-weights": draw_gallery,
    "10-profiles": draw_profiles,
    "11-sample-efficiency": draw_curves,
    "12-speed-up": draw_speed_ups,
    "13-cost": draw_costs,
}


def draw(material: Material) -> Iterator[Drawing]:
    """Draws every figure for which there is something to show."""
    for drawer in DRAWERS.values():
        yield from drawer(material)


def draw_one(material: Material, name: str) -> Drawing:
    """Draws the figure of that name alone.

    Raises:
        ConfigError: The report has no such figure, or the sweep nothing to show in it.
    """
    near = [DRAWERS[name]] if name in DRAWERS else [drawer for stem, drawer in DRAWERS.items() if name.startswith(stem)]
    if not near:
        raise unknown_name("figure", name, DRAWERS)
    drawn = {drawing.name: drawing for drawer in near for drawing in drawer(material)}
    if name not in drawn:
        raise unknown_name(f"figure of {material.folder.path}", name, drawn)
    return drawn[name]
