"""Aggregates over tasks and lineages on the scale start policy = 0, expert = 1."""

from functools import lru_cache

import numpy as np
import polars as pl

from replaybench import plots
from replaybench.analysis.aggregate import AGGREGATE_SCHEMA, aggregates, normalised_scores, performance_profile
from replaybench.report.drawing import Drawing
from replaybench.report.material import Material, n_words

PROFILE_POINTS = 81


@lru_cache(maxsize=1)
def scores_of(material: Material) -> pl.DataFrame | None:
    """Returns the normalised scores of the sweep, or None where no run of the control has a result."""
    control = material.success.filter(pl.col("baseline") == material.sweep.control).drop_nulls("value")
    trained = material.success.filter(pl.col("level").is_not_null()).drop_nulls("value")
    started = trained.filter(pl.col("dataset").is_in(control["dataset"].unique().to_list()))
    if started.is_empty() or (control["value"] == 1.0).all():
        return None
    return normalised_scores(pl.concat([control, started]), material.sweep.control)


@lru_cache(maxsize=1)
def aggregate_frame(material: Material) -> pl.DataFrame:
    """Returns interquartile mean, optimality gap and probability of improvement of every arm and setting."""
    scores = scores_of(material)
    return pl.DataFrame(schema=AGGREGATE_SCHEMA) if scores is None else aggregates(scores, material.sweep.reference)


def draw_profiles(material: Material) -> list[Drawing]:
    """Figure 10: performance profiles."""
    scores = scores_of(material)
    if scores is None:
        return []
    low, high = float(scores["score"].min()), float(scores["score"].max())  # type: ignore[arg-type]
    table = performance_profile(scores, np.linspace(low - 0.05, high + 0.05, PROFILE_POINTS).tolist())
    ratios, levels = material.sweep.spec.ratios(), material.look.levels
    figure, axes = plots.panels(len(ratios), len(levels), width=2.9, height=2.2, share_x=True, share_y=True)
    for i, ratio in enumerate(ratios):
        for j, level in enumerate(levels):
            here = table.filter((pl.col("replay_ratio") == ratio) & (pl.col("level") == level))
            plots.profiles(axes[i, j], here, material.look)
            axes[i, j].set_title(f"{level}, replay ratio {ratio:g}")
        axes[i, 0].set_ylabel("share of lineages above")
    for panel in axes[-1]:
        panel.set_xlabel("score: 0 start policy, 1 expert")
    note = (
        f"Share of lineages whose score is above the value on the x axis, {n_words(material)}. Score: (success - "
        "start) / (1 - start), the start being the task's mean over lineages."
    )
    plots.finish(figure, material.look, table["baseline"].unique().to_list(), note)
    caption = f"{note} Higher is better at every point. Wilson's 95 % interval of each point is in the CSV."
    return [Drawing("10-profiles", "Performance profiles", caption, figure, table)]
