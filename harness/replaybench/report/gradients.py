"""The gradient's error on the sweep's own logs, where `replaybench report gradients` has measured it."""

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import polars as pl

from replaybench import plots
from replaybench.analysis.bias_variance import ZERO
from replaybench.baseline import baseline_paths, load_baseline
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material, loaded_baseline
from replaybench.report.words import counted, from_to, listed
from replaybench.sweep_gradients import read_errors

KNOB_N = 16
TIE = 1e-3


@lru_cache(maxsize=4)
def error_table(material: Material, *, along_knob: bool) -> pl.DataFrame | None:
    """Returns the error relative to the reference's, with the labels of the sweep's arms; None if not measured."""
    if along_knob and loaded_baseline(material.first_runs[material.sweep.reference]) is None:
        return None
    found = read_errors(material.folder, along_knob=along_knob)
    if found is None or found.is_empty():
        return None
    if along_knob:
        return found.with_columns(knob_value=_knob_values(found))
    labels = {_key(run.baseline, run.config): label for label, run in material.first_runs.items()}
    named = [
        material.sweep.control if name == ZERO else labels.get(_key(name, json.loads(config)), name)
        for name, config in found.select("baseline", "config").iter_rows()
    ]
    return found.with_columns(baseline=pl.Series(named))


def _key(baseline: str, config: Mapping[str, object]) -> tuple[str, str]:
    return baseline, json.dumps(config, sort_keys=True)


def _knob_values(table: pl.DataFrame) -> pl.Series:
    fields = {}
    for name in table["baseline"].unique():
        knob = load_baseline(name).declaration.knob if name in baseline_paths() and name != ZERO else None
        fields[name] = knob.field if knob else None
    values = [
        json.loads(config).get(fields[name]) if fields[name] else None
        for name, config in table.select("baseline", "config").iter_rows()
    ]
    return pl.Series(values, dtype=pl.Float64)


def gradient_words(material: Material) -> list[str]:
    """Returns who has the least error on the logs at each number of episodes, every number computed."""
    table = error_table(material, along_knob=False)
    if table is None:
        return []
    reference, control = material.sweep.reference, material.sweep.control
    sentences = []
    for (n,), of_n in table.sort("n").group_by("n", maintain_order=True):
        still = of_n.filter(pl.col("baseline") == control).select("dataset", "level", still="estimate")
        moving = of_n.filter(pl.col("baseline") != control).join(still, on=["dataset", "level"])
        num_worse = len(moving.filter(pl.col("estimate") > pl.col("still")))
        cells = moving.partition_by("dataset", "level")
        # On fresh data all corrections are the same.
        told_apart = [cell for cell in cells if cell["estimate"].max() > (1 + TIE) * cell["estimate"].min()]  # type: ignore[operator]
        least = Counter(cell.sort("estimate")["baseline"][0] for cell in told_apart)
        others = [cell.filter(pl.col("baseline") != reference) for cell in told_apart]
        num_others, below, above = (
            sum(len(cell.filter(which)) for cell in others)
            for which in (pl.lit(value=True), pl.col("high") < 1, pl.col("low") > 1)
        )
        wins = listed([f"{name} ({count})" for name, count in least.most_common()]) or "none"
        sentences.append(
            f"Averages of {counted(n, 'episode')}: not moving has less error than {num_worse} of {len(moving)} "
            f"estimates that move. They differ from each other on {len(told_apart)} of {len(cells)} pairs of data set "
            f"and level, where the least error is that of {wins}; {below} of {num_others} are resolved below that of "
            f"{reference}, {above} above."
        )
    return sentences


def draw_gradient_errors(material: Material) -> list[Drawing]:
    """Figure 6e: the error of the gradient on the logs by number of episodes."""
    table = error_table(material, along_knob=False)
    if table is None:
        return []
    datasets = sorted(table["dataset"].unique())
    known = dict.fromkeys([*material.look.levels, *material.sweep.spec.level_names()])
    levels = [level for level in known if level in set(table["level"])]
    figure, axes = plots.panels(len(datasets), len(levels), width=3.6, height=2.6, share_x=True, share_y=True)
    for i, dataset in enumerate(datasets):
        for j, level in enumerate(levels):
            here = table.filter((pl.col("dataset") == dataset) & (pl.col("level") == level) & (pl.col("estimate") > 0))
            plots.relative_error(axes[i, j], here.rename({"n": "x", "estimate": "relative_mse"}), material.look)
            axes[i, j].set_title(f"{dataset}, {level}")
        axes[i, 0].set_ylabel("MSE / MSE of the reference")
    for panel in axes[-1]:
        panel.set_xlabel("episodes averaged over")
    note = (
        f"{_lineages(table)}; bars: 95 % interval. Below 1: less error than {material.sweep.reference}. Estimates are "
        "unbiased, so a small one can come out negative; it is left out."
    )
    plots.finish(figure, material.look, list(material.look.styles), note)
    caption = (
        f"{note} The estimand is the policy gradient at the start policy, from its own episodes; advantages are from "
        f"one value function. {material.sweep.control} is the estimator that does not move."
    )
    return [Drawing("6-gradients", "Error of the gradient on the logs", caption, figure, table)]


def draw_gradients_along_knobs(material: Material) -> list[Drawing]:
    """Figure 6f: the error of the gradient on the logs along each correction's knob, by level."""
    table = error_table(material, along_knob=True)
    if table is None:
        return []
    table = table.drop_nulls("knob_value").filter((pl.col("n") == _knob_n(table)) & (pl.col("estimate") > 0))
    least = pl.col("estimate") <= (1 + TIE) * pl.col("estimate").min().over("dataset", "level", "baseline")
    table = table.with_columns(may_be_best=least).sort("baseline", "dataset", "level", "knob_value")
    families, datasets = sorted(table["baseline"].unique()), sorted(table["dataset"].unique())
    styles = plots.styles({name: name for name in families}, list(baseline_paths()), ZERO)
    figure, axes = plots.panels(len(families), len(datasets), width=3.7, height=2.3, share_x="row", share_y="row")
    for i, family in enumerate(families):
        for j, dataset in enumerate(datasets):
            here = table.filter((pl.col("baseline") == family) & (pl.col("dataset") == dataset))
            plots.along_knob(axes[i, j], here, styles[family], "level")
            axes[i, j].set_title(f"{family}, {dataset}", fontsize=8.5)
            axes[i, j].set_yscale("log")
            plots.plain_log_ticks(axes[i, j].yaxis)
            knob = load_baseline(family).declaration.knob
            axes[i, j].set_xlabel(knob.field if knob else "")
        axes[i, 0].set_ylabel("MSE / MSE of\nthe reference")
        axes[i, -1].legend(frameon=False, fontsize=6.5)
    note = (
        f"{_lineages(table)}; averages of {counted(_knob_n(table), 'episode')}. The reference is "
        f"{material.sweep.spec.reference} at its defaults. Filled: least error of the level."
    )
    plots.add_note(figure, note)
    return [Drawing("6-gradients-along-knobs", "Error of the gradient along the knob", note, figure, table)]


def _knob_n(table: pl.DataFrame) -> int:
    """Returns the number of episodes nearest to KNOB_N that was measured."""
    measured: list[int] = table["n"].unique().to_list()
    return min(measured, key=lambda n: (abs(n - KNOB_N), n))


def _lineages(table: pl.DataFrame) -> str:
    counts = table["n_lineages"]
    return f"Ratio of means over n = {from_to(counts.min() or 0, counts.max() or 0)} lineages"  # type: ignore[arg-type]
