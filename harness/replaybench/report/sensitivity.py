"""Success along the knob of each correction, where a sweep runs several settings of one."""

from functools import lru_cache

import polars as pl

from replaybench import plots
from replaybench.analysis.compare import POOLED
from replaybench.analysis.sensitivity import ARM_SCHEMA, best_against_best, matched_differences
from replaybench.bandwidth import half_weight
from replaybench.baseline import baseline_paths
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material, loaded_baseline, n_words
from replaybench.results import short_power


@lru_cache(maxsize=1)
def arms_frame(material: Material) -> pl.DataFrame:
    """Returns the trained arms of the sweep with their knob and their upper half-weight log-ratio, where it exists."""
    rows = []
    for label, run in material.first_runs.items():
        baseline = loaded_baseline(run)
        if baseline is None or not baseline.declaration.updates_policy:
            continue
        knob = baseline.declaration.knob
        upper = None
        if baseline.declaration.why_no_curve is None:
            upper = half_weight(baseline, baseline.config(run.config))
        value = run.config.get(knob.field) if knob else None
        rows.append((label, run.baseline, run.train.learning_rate, knob.field if knob else None, value, upper))
    return pl.DataFrame(rows, schema=ARM_SCHEMA, orient="row")


def has_several_settings(arms: pl.DataFrame) -> bool:
    """Whether some correction runs at more than one value of its knob."""
    return bool((arms.group_by("family").agg(pl.col("knob_value").n_unique())["knob_value"] > 1).any())


def draw_sensitivity(material: Material) -> list[Drawing]:
    """Figure 8: success after training against the width of the correction."""
    arms = arms_frame(material)
    if not has_several_settings(arms):
        return []
    table = sensitivity_table(material, arms)
    families = sorted(table["family"].unique())
    look = material.look._replace(
        styles=plots.styles({name: name for name in families}, list(baseline_paths()), material.sweep.control),
        reference=material.sweep.spec.reference,
    )
    rates, ratios = sorted(table["learning_rate"].unique()), material.sweep.spec.ratios()
    rows = [(ratio, rate) for ratio in ratios for rate in rates]
    figure, axes = plots.panels(len(rows), len(look.levels), width=3.1, height=2.4, share_x=True, share_y=True)
    start = material.summary.filter(pl.col("level").is_null() & (pl.col("dataset") == POOLED))
    for i, (ratio, rate) in enumerate(rows):
        for j, level in enumerate(look.levels):
            here = (pl.col("replay_ratio") == ratio) & (pl.col("learning_rate") == rate) & (pl.col("level") == level)
            plots.success_by_width(axes[i, j], table.filter(here), start, look)
            axes[i, j].set_title(f"{level}, replay ratio {ratio:g}, lr {short_power(rate)}", fontsize=8.5)
        axes[i, 0].set_ylabel("success after training")
    for panel in axes[-1]:
        panel.set_xlabel("upper half-weight log-ratio, nats")
    note = (
        f"Mean with 95 % t interval, {n_words(material)}, every task with equal weight. Grey: the start policy. "
        "The same x is the same width: half of the ratio's weight is left at that log-ratio."
    )
    plots.finish(figure, look, families, note)
    caption = f"{note} Corrections whose weight never halves have no place here."
    return [Drawing("8-sensitivity", "Success along the width of the correction", caption, figure, table)]


def sensitivity_table(material: Material, arms: pl.DataFrame) -> pl.DataFrame:
    """Returns the success of every arm that has a width, with its family, learning rate, knob and width."""
    summary = material.summary.filter(pl.col("dataset") == POOLED)
    columns = ["learning_rate", "level", "replay_ratio", "family", "knob", "knob_value", "upper"]
    return (
        summary.join(arms.drop_nulls("upper"), on="baseline")
        .select(*columns, "estimate", "low", "high", "n", "num_missing")
        .sort("learning_rate", "level", "replay_ratio", "family", "upper")
    )


def comparison_frames(material: Material) -> dict[str, pl.DataFrame]:
    """Returns matched-against-matched and best-against-best, or nothing where the sweep has one setting a method."""
    arms = arms_frame(material)
    reference = material.sweep.spec.reference
    if not has_several_settings(arms) or reference not in arms["family"]:
        return {}
    return {
        "matched": matched_differences(material.success, arms, reference),
        "best": best_against_best(material.success, arms, reference),
    }
