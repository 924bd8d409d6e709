"""Turns the records of a sweep into verdicts for the terminal and one self-contained page with its figures and tables.

Every sentence is a template filled from a table; a verdict that the tables do not resolve is printed as such.
"""

import json
import subprocess
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from replaybench import plots
from replaybench.analysis.bias_variance import ZERO, StudyCell, StudyRow, paper_cells, pareto_frontier
from replaybench.analysis.compare import (
    BETTER,
    POOLED,
    UNRESOLVED,
    WORSE,
    cell_means,
    improvement_over_start,
    level_summary,
    paired_differences,
)
from replaybench.baseline import Baseline, baseline_paths, gradient_coefficient, load_baseline
from replaybench.errors import ReplayBenchError
from replaybench.paths import PACKAGE_DIR, ROOT, TEMPLATE
from replaybench.record import SweepFolder
from replaybench.results import (
    LevelFacts,
    Sweep,
    curves,
    final_success,
    level_facts,
    levels_by_distance,
    lineage_intervals,
    lineage_means,
    manifests,
    read_sweep,
    replay_ratios,
    short_power,
)
from replaybench.spec import RunSpec
from replaybench.store import atomic_write, read_card
from replaybench.study import gridworld_rows

TERMINAL_COLUMNS = 110
LABEL_COLUMNS = 40

DIAGNOSTICS = {
    "ess_token_raw": "ESS share (token)",
    "near_zero_share_positive": "near-zero share, A > 0",
    "near_zero_share_negative": "near-zero share, A < 0",
    "kl_k3_token_raw": "KL to behaviour (k3)",
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
LOG_RATIO_RANGE, WEIGHT_BOTTOM, WEIGHT_TOP = 4.0, -1.0, 4.0


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build leaves: the verdicts for the terminal and the page."""

    verdict_text: str
    index: Path


class Cell(NamedTuple):
    """One cell of a table in the page: what is shown, what sorts, and its CSS classes."""

    text: str
    sort: str | float = ""
    css: str = ""


class Table(NamedTuple):
    """A table of the page; `csv` names the file that holds all its columns."""

    name: str
    title: str
    headings: list[str]
    rows: list[list[Cell]]
    note: str = ""
    csv: str = ""


class Drawing(NamedTuple):
    """A figure, the table that it shows, and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure
    table: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that the report is made from."""

    folder: SweepFolder
    sweep: Sweep
    facts: LevelFacts
    look: plots.Look
    success: pl.DataFrame
    summary: pl.DataFrame
    differences: pl.DataFrame
    improvement: pl.DataFrame
    num_complete: int
    manifests: list[dict[str, Any]]

    @property
    def datasets(self) -> list[str]:
        """The data sets of the sweep, sorted."""
        return sorted({run.dataset for run in self.sweep.runs})

    @property
    def settings(self) -> list[tuple[float, str]]:
        """The (replay ratio, level) pairs, levels from fresh to stale."""
        return [(ratio, level) for ratio in sorted(self.sweep.spec.replay_ratios) for level in self.look.levels]


def build_report(folder: SweepFolder) -> Built:
    """Builds <folder>/report from the records of the finished runs.

    Raises:
        ConfigError: The folder holds no sweep.
        DataError: A record is damaged.
    """
    material = gather(folder)
    out = folder.path / "report"
    with plots.theme():
        drawings = draw(material)
        shown = {drawing.name: _write_figure(out, drawing) for drawing in drawings}
    tables = page_tables(material)
    for name, frame in csv_tables(material).items():
        _write(out / "tables" / f"{name}.csv", frame.write_csv().encode())
    index = out / "index.html"
    _write(index, render_page(material, shown, tables).encode())
    return Built(verdict_text=verdict_text(material), index=index)


def gather(folder: SweepFolder) -> Material:
    """Reads the records and computes the tables."""
    sweep = read_sweep(folder)
    facts = level_facts(sweep.runs)
    success = final_success(folder)
    levels = levels_by_distance(sweep.spec, facts.frame)
    baseline_of = {sweep.labels[run.run_id()]: run.baseline for run in sweep.runs}
    ordered = dict(sorted(baseline_of.items(), key=lambda item: (item[0] != sweep.control, item[0])))
    look = plots.Look(
        styles=plots.styles(ordered, list(baseline_paths()), sweep.control),
        levels=levels,
        control=sweep.control,
        reference=sweep.reference,
    )
    return Material(
        folder=folder,
        sweep=sweep,
        facts=facts,
        look=look,
        success=success,
        summary=level_summary(success),
        differences=paired_differences(success, sweep.reference),
        improvement=improvement_over_start(success, sweep.control),
        num_complete=sum(folder.is_complete(run.run_id()) for run in sweep.runs),
        manifests=manifests(folder),
    )


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def signed(value: float) -> str:
    """Returns a difference with its sign and two decimals; what rounds to nothing is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def plain(value: float) -> str:
    """Returns a share with two decimals."""
    return f"{round(value, 2) + 0.0:.2f}"


def with_interval(row: Mapping[str, Any], show: Callable[[float], str] = signed) -> str:
    """Returns "+0.05 [-0.02, +0.12]", or why there is no estimate or no interval."""
    if row["estimate"] is None:
        return "not measured"
    if row["low"] is None:
        return f"{show(row['estimate'])} [{row['interval_method']}]"
    return f"{show(row['estimate'])} [{show(row['low'])}, {show(row['high'])}]"


def with_n(row: Mapping[str, Any], show: Callable[[float], str] = signed) -> str:
    """Returns the estimate with interval and n."""
    return f"{with_interval(row, show)} n={row['n']}"


def detectable(row: Mapping[str, Any]) -> str:
    """Returns the minimum detectable difference, "-" where it is not defined."""
    return "-" if row["minimum_detectable"] is None else plain(row["minimum_detectable"])


def setting_name(ratio: float, level: str) -> str:
    """Returns how a cell of the tables is called in a sentence."""
    return f"{level} at replay ratio {ratio:g}"


def verdict_text(material: Material) -> str:
    """Returns the pooled verdicts as plain text of at most 110 columns."""
    sweep = material.sweep
    lines = [
        f"{sweep.spec.name}: success after training, difference to {sweep.reference}",
        f"pooled over {_count(len(material.datasets), 'data set')}; 95 % t interval over n lineages; "
        "verdicts adjusted after Holm",
    ]
    for ratio, level in material.settings:
        lines += ["", f"Replay ratio {ratio:g}, level {level}{_distance_words(material, level)}"]
        lines += _setting_lines(material, ratio, level)
    lines += ["", *textwrap.wrap(" ".join(conclusion(material)), TERMINAL_COLUMNS)]
    # Names come from the user and have no limit of their own.
    return "\n".join(line if len(line) <= TERMINAL_COLUMNS else line[: TERMINAL_COLUMNS - 3] + "..." for line in lines)


def _setting_lines(material: Material, ratio: float, level: str) -> list[str]:
    start = pooled_rows(material.improvement, ratio, level)
    lines = [
        f"  {_shortened(row['baseline'] + ' against the start policy')}: {with_n(row)}, {row['verdict']}"
        for row in start
        if row["baseline"] == material.sweep.reference
    ]
    rows = pooled_rows(material.differences, ratio, level)
    width = max([len("baseline"), *(len(_shortened(row["baseline"])) for row in rows)])
    lines.append(f"  {'baseline':<{width}}  {'difference':<24} {'n':>3}  {'verdict':<22}  detectable")
    for row in rows:
        lines.append(
            f"  {_shortened(row['baseline']):<{width}}  {with_interval(row):<24} {row['n']:>3}  "
            f"{row['verdict']:<22}  {detectable(row)}"
        )
    return lines


def _shortened(label: str) -> str:
    return label if len(label) <= LABEL_COLUMNS else label[: LABEL_COLUMNS - 3] + "..."


def _distance_words(material: Material, level: str) -> str:
    distance = _mean_fact(material.facts.frame, "kl", level)
    return "" if distance is None else f" (KL(mu||start) {short(distance)})"


def _mean_fact(facts: pl.DataFrame, metric: str, level: str, dataset: str | None = None) -> float | None:
    chosen = facts.filter((pl.col("metric") == metric) & (pl.col("level") == level))
    if dataset is not None:
        chosen = chosen.filter(pl.col("dataset") == dataset)
    means = chosen.group_by("dataset").agg(pl.col("value").mean()).sort("dataset")["value"]
    return None if means.is_empty() else float(means.mean())  # type: ignore[arg-type]


def pooled_rows(table: pl.DataFrame, ratio: float, level: str) -> list[dict[str, Any]]:
    """Returns the rows of a comparison at one setting, pooled over data sets, the best estimate first."""
    rows = table.filter((pl.col("dataset") == POOLED) & (pl.col("replay_ratio") == ratio) & (pl.col("level") == level))
    return rows.sort("estimate", "baseline", descending=[True, False], nulls_last=True).to_dicts()


def conclusion(material: Material) -> list[str]:
    """Returns the sentences that the pooled tables support: against the reference, then against the start policy."""
    sentences = [_against_reference(material)]
    if material.sweep.reference != material.sweep.control:
        sentences.append(_against_start(material))
    return sentences


def _against_reference(material: Material) -> str:
    rows = [row for setting in material.settings for row in pooled_rows(material.differences, *setting)]
    rows = [row for row in rows if row["baseline"] != material.sweep.control]
    reference, cells = material.sweep.reference, _count(len(material.settings), "cell")
    found = [row for row in rows if row["verdict"] != UNRESOLVED]
    if not found:
        return (
            f"No difference to {reference} is resolved on any of {cells} (level x replay ratio, {n_words(material)})"
            f"{_missed_words(rows)}."
        )
    parts = [f"resolved {verdict} {_shares(found, verdict)}" for verdict in (BETTER, WORSE)]
    silent = sorted({row["baseline"] for row in rows} - {row["baseline"] for row in found})
    if silent:
        parts.append(f"no difference resolved anywhere for {_listed(silent)}")
    largest = max(found, key=lambda row: abs(row["estimate"]))
    place = setting_name(largest["replay_ratio"], largest["level"])
    return (
        f"Against {reference}, on {cells} (level x replay ratio): {'; '.join(parts)}. "
        f"The largest is {largest['baseline']} with {with_n(largest)} on {place}."
    )


def _shares(found: Sequence[Mapping[str, Any]], verdict: str) -> str:
    """Returns which baselines have the verdict, by the number of cells on which they have it."""
    counts = Counter(row["baseline"] for row in found if row["verdict"] == verdict)
    by_count: dict[int, list[str]] = {}
    for name, count in sorted(counts.items()):
        by_count.setdefault(count, []).append(name)
    parts = [f"on {count}: {_listed(names)}" for count, names in sorted(by_count.items(), reverse=True)]
    return ", ".join(parts) if parts else "nowhere"


def _missed_words(rows: Sequence[Mapping[str, Any]]) -> str:
    limits = [row["minimum_detectable"] for row in rows if row["minimum_detectable"] is not None]
    if not limits:
        return ""
    return f"; true differences below {plain(min(limits))} to {plain(max(limits))} could have been missed"


def _against_start(material: Material) -> str:
    tables = {setting: pooled_rows(material.improvement, *setting) for setting in material.settings}
    measured = {setting: rows for setting, rows in tables.items() if any(row["estimate"] is not None for row in rows)}
    if not measured:
        return "No run can be compared with the start policy."
    barren = [setting for setting, rows in measured.items() if all(row["verdict"] != BETTER for row in rows)]
    cells = _count(len(measured), "cell")
    if not barren:
        return f"On each of {cells} some baseline is resolved better than the start policy."
    worse = sorted({row["baseline"] for setting in barren for row in measured[setting] if row["verdict"] == WORSE})
    harm = f"{_listed(worse)} resolved worse than it" if worse else "none is resolved worse than it either"
    if len(barren) == len(measured):
        return (
            f"No baseline is resolved better than the start policy on any of {cells}, so that the question is who "
            f"harms least; {harm}."
        )
    return (
        f"On {len(measured) - len(barren)} of {cells} some baseline is resolved better than the start policy; on the "
        f"others ({_places(barren)}) the question is who harms least; {harm} there."
    )


def _places(settings: Sequence[tuple[float, str]]) -> str:
    by_ratio: dict[float, list[str]] = {}
    for ratio, level in settings:
        by_ratio.setdefault(ratio, []).append(level)
    return "; ".join(f"{_listed(levels)} at replay ratio {ratio:g}" for ratio, levels in by_ratio.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def n_words(material: Material) -> str:
    """Returns how many lineages a comparison rests on."""
    counts = sorted(set(material.differences.filter(pl.col("dataset") == POOLED)["n"].to_list()))
    return "n = 0 lineages" if not counts else f"n = {_range(counts[0], counts[-1])} lineages"


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def draw(material: Material) -> list[Drawing]:
    """Draws every figure for which there is something to show."""
    drawings = [draw_success(material), draw_differences(material)]
    drawings += draw_diagnostics(material) + draw_distances(material) + draw_weights(material)
    return [*drawings, draw_bias_variance(material), *draw_levels(material)]


def draw_success(material: Material) -> Drawing:
    """Figure 1: success after training against the freshness level."""
    table = success_table(material)
    ratios, datasets = sorted(material.sweep.spec.replay_ratios), material.datasets
    arms = len(material.look.styles) - 1
    width = max(3.8, 0.17 * arms * len(material.look.levels))
    figure, axes = plots.panels(len(ratios), len(datasets), width=width, height=2.9, share_y="col")
    for i, ratio in enumerate(ratios):
        for j, dataset in enumerate(datasets):
            chosen = (pl.col("dataset") == dataset) & (pl.col("replay_ratio").eq(ratio) | pl.col("level").is_null())
            plots.success_by_level(axes[i, j], table.filter(chosen), _with_ticks(material, dataset))
            axes[i, j].set_title(f"{dataset}, replay ratio {ratio:g}")
        axes[i, 0].set_ylabel("success after training")
    note = f"Bars and grey band: mean over {_lineages(table)} with 95 % t interval. Dots: lineages, seeds averaged."
    plots.finish(figure, material.look, list(material.look.styles), note)
    caption = (
        f"{note} Levels in order of measured KL(mu||start). Grey dashed line: the start policy, untrained. "
        "Lineages differ from each other, so overlapping bars do not decide a comparison; the paired differences do."
    )
    return Drawing("1-success", "Success after training", caption, figure, table)


def success_table(material: Material) -> pl.DataFrame:
    """Returns what figure 1 draws: means with intervals, and the lineages' values."""
    place = ["dataset", "replay_ratio", "level", "baseline"]
    means = material.summary.filter(pl.col("dataset") != POOLED).select(
        *place, kind=pl.lit(plots.MEAN), lineage=pl.lit(None, pl.Int64), value="estimate", low="low", high="high", n="n"
    )
    return pl.concat([means, _dots(cell_means(material.success), place)])


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
    return f"n = {_range(counts.min() or 0, counts.max() or 0)} lineages"  # type: ignore[arg-type]


def _with_ticks(material: Material, dataset: str) -> plots.Look:
    ticks = {}
    for level in material.look.levels:
        distance = _mean_fact(material.facts.frame, "kl", level, dataset)
        ticks[level] = level if distance is None else f"{level}\nKL {short(distance)}"
    return material.look._replace(ticks=ticks)


def draw_differences(material: Material) -> Drawing:
    """Figure 2: paired differences to the reference."""
    table = material.differences
    if len(material.datasets) == 1:
        table = table.filter(pl.col("dataset") == POOLED)
    ratios, levels = sorted(material.sweep.spec.replay_ratios), material.look.levels
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
    return Drawing("2-differences", f"Difference to {reference}", caption, figure, table)


def draw_diagnostics(material: Material) -> list[Drawing]:
    """Figure 3: training diagnostics over updates, one figure for each data set and replay ratio."""
    rows = curves(material.folder, list(DIAGNOSTICS))
    place = ["dataset", "replay_ratio", "level", "baseline", "metric", "update"]
    means = lineage_means(rows, place)
    intervals = lineage_intervals(means, place).select(
        *place, kind=pl.lit(plots.MEAN), lineage=pl.lit(None, pl.Int64), value="value", low="low", high="high", n="n"
    )
    last = means.filter(pl.col("update") == pl.col("update").max().over("dataset", "replay_ratio", "level"))
    table = pl.concat([intervals, _dots(last, place)])
    drawings = []
    for dataset in material.datasets:
        for ratio in sorted(material.sweep.spec.replay_ratios):
            chosen = table.filter((pl.col("dataset") == dataset) & (pl.col("replay_ratio") == ratio))
            if not chosen.is_empty():
                drawings.append(_draw_diagnostics_of(material, dataset, ratio, chosen))
    return drawings


def _draw_diagnostics_of(material: Material, dataset: str, ratio: float, table: pl.DataFrame) -> Drawing:
    levels = material.look.levels
    figure, axes = plots.panels(len(DIAGNOSTICS), len(levels), width=2.9, height=1.75, share_x=True)
    for i, (metric, name) in enumerate(DIAGNOSTICS.items()):
        of_metric = table.filter(pl.col("metric") == metric)
        for j, level in enumerate(levels):
            plots.metric_over_updates(axes[i, j], of_metric.filter(pl.col("level") == level), material.look)
            if i == 0:
                axes[i, j].set_title(level)
        plots.zoom_to_values(list(axes[i]), of_metric)
        axes[i, 0].set_ylabel(name)
    for panel in axes[-1]:
        panel.set_xlabel("updates")
    note = (
        f"{dataset}, replay ratio {ratio:g}: mean over {_lineages(table)}; bands: 95 % t interval, cut at the range of "
        "the values; dots: lineages at the last update. One minibatch a point."
    )
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    caption = (
        f"{note} ESS share: (sum rho)^2 / (N sum rho^2) of raw ratios. Near-zero share: items of that sign of the "
        "advantage whose weight is below 0.001. Gradient norm before clipping."
    )
    return Drawing(f"3-diagnostics-{dataset}-R{ratio:g}", f"{dataset}, replay ratio {ratio:g}", caption, figure, table)


def draw_distances(material: Material) -> list[Drawing]:
    """Figure 4: where the policy went, away from the start policy and away from the behaviour policy."""
    rows = curves(material.folder, [TO_BEHAVIOUR, TO_START])
    if rows.is_empty():
        return []
    table = _distance_table(rows)
    settings = [(d, r) for d in material.datasets for r in sorted(material.sweep.spec.replay_ratios)]
    levels = material.look.levels
    figure, axes = plots.panels(len(settings), len(levels), width=2.9, height=2.5, share_x=True, share_y=True)
    for i, (dataset, ratio) in enumerate(settings):
        for j, level in enumerate(levels):
            chosen = (pl.col("dataset") == dataset) & (pl.col("replay_ratio") == ratio) & (pl.col("level") == level)
            plots.distances(axes[i, j], table.filter(chosen), material.look)
            axes[i, j].set_title(f"{dataset}, {level}, replay ratio {ratio:g}", fontsize=8.5)
        axes[i, 0].set_ylabel("KL(start || end)")
    plots.log_where_positive(list(axes.flat), table, TO_BEHAVIOUR, TO_START)
    for panel in axes[-1]:
        panel.set_xlabel("KL(behaviour || end), k3")
    counts = table.filter(pl.col("kind") == plots.MEAN)["n"]
    note = (
        f"Mean KL of an action token on the replayed states after the last update, nats. Large: mean over "
        f"n = {_range(counts.min() or 0, counts.max() or 0)} lineages; dots: lineages."  # type: ignore[arg-type]
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


def draw_weights(material: Material) -> list[Drawing]:
    """Figure 5: the gradient coefficient of every arm."""
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
    log_ratio = torch.linspace(-LOG_RATIO_RANGE, LOG_RATIO_RANGE, 161, dtype=torch.float64)
    frames, left_out = [], []
    for label, run in first_runs(material.sweep).items():
        baseline = _loaded(run)
        if baseline is None:
            left_out.append(f"{label} (changed or missing on disk)")
            continue
        if baseline.declaration.why_no_curve is not None:
            left_out.append(f"{label} ({baseline.declaration.why_no_curve})")
            continue
        for advantage in (1.0, -1.0):
            coefficient = gradient_coefficient(baseline, baseline.config(run.config), log_ratio, advantage)
            frames.append(
                pl.DataFrame({"log_ratio": log_ratio.tolist(), "coefficient": coefficient.tolist()}).select(
                    pl.lit(label).alias("baseline"), pl.lit(advantage).alias("advantage"), pl.all()
                )
            )
    return (pl.concat(frames) if frames else pl.DataFrame()), left_out


def first_runs(sweep: Sweep) -> dict[str, RunSpec]:
    """Returns one run of each arm, by label."""
    found: dict[str, RunSpec] = {}
    for run in sweep.runs:
        found.setdefault(sweep.labels[run.run_id()], run)
    return dict(sorted(found.items()))


def _loaded(run: RunSpec) -> Baseline | None:
    """Returns the baseline file that the run used, or None where it is gone or another one now."""
    try:
        baseline = load_baseline(run.baseline_path or run.baseline)
    except ReplayBenchError:
        return None
    return baseline if baseline.digest == run.baseline_sha256 else None


def _cut_words(table: pl.DataFrame, top: float) -> str:
    largest = table.group_by("baseline").agg(pl.col("coefficient").max()).sort("baseline")
    cut = [f"{name} reaches {value:.3g}" for name, value in largest.iter_rows() if value > top]
    return f"Cut at {top:g}: {', '.join(cut)}." if cut else ""


def draw_bias_variance(material: Material) -> Drawing:
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
        panel.set_title(_count(n, "sample"))
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
    return Drawing("6-bias-variance", "Bias and variance of the gradient estimator", caption, figure, table)


def widest_cell() -> StudyCell:
    """Returns the cell of the exact study with the largest |log-ratio|, so that no result decides what is shown."""
    return max(paper_cells(), key=lambda cell: float(abs(np.log(cell.target_K / cell.behaviour_K)).max()))


def _study_table(material: Material, cell: StudyCell) -> pl.DataFrame:
    paths = {run.baseline_path for run in material.sweep.runs if run.baseline_path and _loaded(run)}
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


class ShownFigure(NamedTuple):
    """A figure as the page needs it."""

    name: str
    title: str
    caption: str
    svg: Markup


def _write_figure(out: Path, drawing: Drawing) -> ShownFigure:
    rendered = plots.render(drawing.figure, f"figure-{drawing.name.replace('.', '-')}")
    for suffix, content in (
        ("png", rendered.png),
        ("pdf", rendered.pdf),
        ("csv", drawing.table.write_csv().encode()),
    ):
        _write(out / "figures" / f"{drawing.name}.{suffix}", content)
    return ShownFigure(drawing.name, drawing.title, drawing.caption, Markup(rendered.svg))


def csv_tables(material: Material) -> dict[str, pl.DataFrame]:
    """Returns the tables that are written as CSV, by name, with all their columns."""
    return {
        "verdicts": material.differences,
        "improvement": material.improvement,
        "levels": material.summary,
        "level-facts": material.facts.frame,
        "replay-ratio": replay_ratios(material.folder),
        "settings": settings_frame(material),
        "provenance": provenance_frame(material),
        "failures": failures_frame(material),
        "runs": material.success,
    }


def settings_frame(material: Material) -> pl.DataFrame:
    """Returns the setting and the source of every arm."""
    rows = []
    for label, run in first_runs(material.sweep).items():
        baseline = _loaded(run)
        rows.append(
            {
                "baseline": label,
                "learning_rate": run.train.learning_rate,
                "config": ", ".join(f"{key}={value}" for key, value in sorted(run.config.items())),
                "paper": baseline.declaration.paper if baseline else None,
                "arxiv": baseline.declaration.arxiv if baseline else None,
                "baseline_sha256": run.baseline_sha256,
            }
        )
    schema = {name: pl.Float64 if name == "learning_rate" else pl.String for name in rows[0]} if rows else {}
    return pl.DataFrame(rows, schema=schema)


def failures_frame(material: Material) -> pl.DataFrame:
    """Returns the runs that failed and why."""
    rows = [{"run_id": failure["run_id"], "reason": failure["reason"]} for failure in material.folder.failures()]
    return pl.DataFrame(rows, schema={"run_id": pl.String, "reason": pl.String})


def provenance_frame(material: Material) -> pl.DataFrame:
    """Returns where the numbers come from, as (fact, value)."""
    rows = [("sweep", material.sweep.spec.name), ("runs planned", str(len(material.sweep.runs)))]
    rows += [("runs with a result", str(material.num_complete))]
    rows += [("sum of the runs' wall time", f"{sum(m['wall_s'] for m in material.manifests):.0f} s")]
    rows += [(f"version of {name}", value) for name, value in _tallied(m["versions"] for m in material.manifests)]
    rows += [(f"host: {name}", value) for name, value in _tallied(m["host"] for m in material.manifests)]
    commit = checkout_commit()
    rows += [("commit of the checkout that built this page", commit)] if commit else []
    rows += [("files that built this page", "installed package")] if not commit else []
    digests = {(run.dataset, run.lineage): run for run in material.sweep.runs}
    for (dataset, lineage), run in sorted(digests.items()):
        rows.append((f"card of {dataset}, lineage {lineage}", f"sha256 {run.card_sha256}"))
        if run.data_folder not in material.facts.unread:
            rows.append((f"command that made {dataset}, lineage {lineage}", read_card(run.data_folder).command))
    rows += [("card not found as planned, its facts are left out", folder) for folder in material.facts.unread]
    shared = material.sweep.spec.train.model_dump(mode="json", exclude={"learning_rate"})
    rows += [(f"training: {key}", _as_text(value)) for key, value in shared.items()]
    rows += [(f"evaluation: {k}", _as_text(v)) for k, v in material.sweep.spec.evaluate.model_dump(mode="json").items()]
    return pl.DataFrame(rows, schema={"fact": pl.String, "value": pl.String}, orient="row")


def _as_text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _tallied(records: Any) -> list[tuple[str, str]]:
    """Returns each key with its values; where runs differ, with how many had which."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in record.items():
            counts.setdefault(key, Counter())[str(value)] += 1
    return [
        (key, next(iter(found)) if len(found) == 1 else ", ".join(f"{v} ({n} runs)" for v, n in sorted(found.items())))
        for key, found in sorted(counts.items())
    ]


def checkout_commit() -> str | None:
    """Returns the commit of the checkout that runs, marked where files differ from it; None for an installed wheel."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit} with uncommitted changes" if _git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE_DIR), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def page_tables(material: Material) -> dict[str, Table]:
    """Returns the tables of the page by name."""
    per_dataset = material.differences.filter(pl.col("dataset") != POOLED)
    tables = [
        glance_table("glance", f"Difference to {material.sweep.reference} at a glance", material, material.differences),
        glance_table("glance-start", "Difference to the start policy at a glance", material, material.improvement),
        _comparison("verdicts", "Differences to the reference, pooled", material, _pooled(material.differences)),
        _comparison("verdicts-by-dataset", "Differences to the reference, each data set", material, per_dataset),
        _comparison(
            "improvement", "Improvement over the start policy, pooled", material, _pooled(material.improvement)
        ),
        _levels_table(material),
        _facts_table(material),
        _ratio_table(material),
        _settings_table(material),
        _text_table("provenance", "Provenance", provenance_frame(material), ["fact", "value"]),
        _text_table("failures", "Failed runs", failures_frame(material), ["run", "reason"]),
    ]
    return {table.name: table for table in tables}


def _pooled(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("dataset") == POOLED)


def glance_table(name: str, title: str, material: Material, table: pl.DataFrame) -> Table:
    """Returns the pooled verdicts of a comparison, one row a baseline and one column a cell."""
    found = {(row["baseline"], row["replay_ratio"], row["level"]): row for row in _pooled(table).to_dicts()}
    settings = material.settings
    rows = []
    for label in sorted({key[0] for key in found}):
        row = [Cell(label, label, "name")]
        for ratio, level in settings:
            row.append(_verdict_cell(found[label, ratio, level], with_n))
        rows.append(row)
    headings = ["baseline", *(f"{level}, R {ratio:g}" for ratio, level in settings)]
    return Table(name, title, headings, rows, csv="verdicts" if name == "glance" else "improvement")


def _verdict_cell(row: Mapping[str, Any], show: Callable[[Mapping[str, Any]], str]) -> Cell:
    # Colour is never the only sign: the arrow says the same.
    mark, css = {BETTER: ("\u25b2 ", "better"), WORSE: ("\u25bc ", "worse")}.get(row["verdict"], ("", "unresolved"))
    return Cell(mark + show(row), _sortable(row["estimate"]), f"number {css}")


def _sortable(value: float | None) -> str | float:
    return "" if value is None else value


def _comparison(name: str, title: str, material: Material, frame: pl.DataFrame) -> Table:
    order = {level: number for number, level in enumerate(material.look.levels)}
    headings = ["data set", "replay ratio", "level", "baseline", "difference, 95 % interval", "n", "verdict"]
    headings += ["p", "p (Holm)", "detectable", "missing", "partial", "interval"]
    rows = []
    for row in sorted(
        frame.to_dicts(), key=lambda r: (r["dataset"], r["replay_ratio"], order[r["level"]], r["baseline"])
    ):
        rows.append(
            [
                Cell(row["dataset"], row["dataset"]),
                _number(row["replay_ratio"], "g"),
                Cell(row["level"], order[row["level"]]),
                Cell(row["baseline"], row["baseline"], "name"),
                _verdict_cell(row, with_interval),
                _number(row["n"], "d"),
                Cell(row["verdict"], row["verdict"], "" if row["verdict"] == UNRESOLVED else row["verdict"]),
                _number(row["p_value"], ".2g"),
                _number(row["p_holm"], ".2g"),
                _number(row["minimum_detectable"], ".2f"),
                _number(row["num_missing"], "d"),
                _number(row["num_partial"], "d"),
                Cell(row["interval_method"], row["interval_method"]),
            ]
        )
    note = (
        "Detectable: the true difference that this comparison, alone among those of its cell, finds with probability "
        "0.8. Missing: lineages without a pair. Partial: lineages averaged over fewer seeds."
    )
    csv = "improvement" if name == "improvement" else "verdicts"
    if frame["dataset"].n_unique() == 1:
        headings, rows = headings[1:], [row[1:] for row in rows]
    return Table(name, title, headings, rows, note, csv)


def _number(value: float | None, form: str) -> Cell:
    return Cell("-" if value is None else format(value, form), _sortable(value), "number")


def _levels_table(material: Material) -> Table:
    order = {level: number for number, level in enumerate(material.look.levels)}
    rows = []
    for row in material.summary.to_dicts():
        level = row["level"] or "start policy"
        rows.append(
            [
                Cell(row["dataset"], row["dataset"]),
                Cell(
                    "-" if row["replay_ratio"] is None else f"{row['replay_ratio']:g}",
                    _sortable(row["replay_ratio"]),
                    "number",
                ),
                Cell(level, order.get(row["level"], -1)),
                Cell(row["baseline"], row["baseline"], "name"),
                Cell(with_interval(row, plain), _sortable(row["estimate"]), "number"),
                _number(row["n"], "d"),
                _number(row["num_missing"], "d"),
            ]
        )
    headings = ["data set", "replay ratio", "level", "baseline", "success, 95 % interval", "n", "missing"]
    return Table("levels", "Success after training", headings, rows, csv="levels")


def _facts_table(material: Material) -> Table:
    frame = material.facts.frame
    shown = {**LEVEL_MEASURES, "episode_length": "episode length", "num_episodes": "episodes", "num_steps": "steps"}
    rows = []
    for dataset in material.datasets:
        for place, level in enumerate(material.look.levels):
            here = frame.filter((pl.col("dataset") == dataset) & (pl.col("level") == level))
            if here.is_empty():
                continue
            cells = [
                Cell(dataset, dataset),
                Cell(level, place),
                Cell(_lag_words(here)),
                _number(here["lineage"].n_unique(), "d"),
            ]
            for metric in shown:
                values = here.filter(pl.col("metric") == metric)["value"]
                cells.append(_spread(values.to_list()))
            rows.append(cells)
    note = "Mean over lineages, with the lowest and the highest lineage in brackets."
    headings = ["data set", "level", "lag in updates", "lineages", *shown.values()]
    return Table("level-facts", "What the logs hold", headings, rows, note, "level-facts")


def _lag_words(here: pl.DataFrame) -> str:
    low, high, branch = here["lag_low"].min(), here["lag_high"].max(), here["branch_updates"]
    if low is not None and high is not None:
        return _range(low, high)  # type: ignore[arg-type]
    if branch.drop_nulls().is_empty():
        return "-"
    return f"branched, {_range(branch.min(), branch.max())} updates"  # type: ignore[arg-type]


def _spread(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("-", "", "number")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Cell(short(mean), mean, "number")
    return Cell(f"{short(mean)} [{short(min(values))}, {short(max(values))}]", mean, "number")


def short(value: float) -> str:
    """Returns a measurement with three digits."""
    # A distance of a policy to itself is rounding, not 1e-8.
    if abs(value) < 5e-4:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio_table(material: Material) -> Table:
    rows = [
        [
            Cell(row["dataset"], row["dataset"]),
            Cell(row["level"], row["level"]),
            _number(row["replay_ratio"], "g"),
            Cell(_range(row["realised_low"], row["realised_high"]), row["realised_low"], "number"),
            Cell(_range(row["steps_low"], row["steps_high"]), row["steps_low"], "number"),
            _number(row["num_runs"], "d"),
        ]
        for row in replay_ratios(material.folder).to_dicts()
    ]
    headings = ["data set", "level", "requested", "realised", "logged steps", "runs"]
    return Table("replay-ratio", "Replay ratio, requested and realised", headings, rows, csv="replay-ratio")


def _settings_table(material: Material) -> Table:
    rows = [
        [
            Cell(row["baseline"], row["baseline"], "name"),
            Cell(short_power(row["learning_rate"]), row["learning_rate"], "number"),
            Cell(row["config"] or "none", row["config"]),
            Cell(row["paper"] or "-", row["paper"] or ""),
            Cell(row["arxiv"] or "-", row["arxiv"] or ""),
            Cell(row["baseline_sha256"][:12], row["baseline_sha256"], "code"),
        ]
        for row in settings_frame(material).to_dicts()
    ]
    headings = ["baseline", "learning rate", "settings", "source", "arXiv", "file sha256"]
    note = "The control makes no updates; its learning rate is not used."
    return Table("settings", "Settings of each baseline", headings, rows, note, "settings")


def _text_table(name: str, title: str, frame: pl.DataFrame, headings: list[str]) -> Table:
    rows = [[Cell(str(value), str(value), "wrap") for value in row] for row in frame.iter_rows()]
    return Table(name, title, headings, rows, csv=name)


def render_page(material: Material, figures: Mapping[str, ShownFigure], tables: Mapping[str, Table]) -> str:
    """Returns the page: one file that needs no other one and no network."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    spec = material.sweep.spec
    missing = len(material.sweep.runs) - material.num_complete
    return environment.get_template(TEMPLATE.name).render(
        name=spec.name,
        description=spec.description,
        reference=material.sweep.reference,
        control=material.sweep.control,
        arms_of_reference=sum(run.baseline == spec.reference for run in first_runs(material.sweep).values()),
        levels=material.look.levels,
        ratios=[f"{ratio:g}" for ratio in sorted(spec.replay_ratios)],
        datasets=material.datasets,
        num_lineages=len(spec.lineages),
        num_seeds=len(spec.seeds),
        num_episodes=spec.evaluate.episodes,
        num_planned=len(material.sweep.runs),
        num_complete=material.num_complete,
        num_missing=missing,
        conclusion=conclusion(material),
        detectable=_missed_range(material),
        figures=figures,
        diagnostics=[figure for name, figure in figures.items() if name.startswith("3-diagnostics")],
        tables=tables,
        unread=material.facts.unread,
    )


def _missed_range(material: Material) -> str:
    limits = _pooled(material.differences)["minimum_detectable"].drop_nulls().to_list()
    return f"{plain(min(limits))} to {plain(max(limits))}" if limits else ""
