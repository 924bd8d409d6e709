"""Chooses one setting for each baseline from a sweep over its learning rate and knob."""

from typing import NamedTuple

import polars as pl


class Choice(NamedTuple):
    """The best trial of a baseline: its mean success over the cells, minus the control's, and what it was up against.

    standard_error is over lineages; second_best is the next trial's mean; num_trials counts all of them.
    """

    baseline: str
    learning_rate: float
    config: str
    gain: float
    standard_error: float
    second_best: float
    num_trials: int
    num_lineages: int


def choose(runs: pl.DataFrame) -> list[Choice]:
    """Returns the trial of each baseline with the highest mean over datasets, lineages, levels and replay ratios.

    Args:
        runs: One row a run: dataset, lineage, level, replay_ratio, baseline, learning_rate, config, value; the
            control's rows have a null level. Trials that lack a run of some cell are left out, so that all are
            judged on the same cells.
    """
    keys = ["dataset", "lineage"]
    control = runs.filter(pl.col("level").is_null()).group_by(keys).agg(pl.col("value").mean().alias("control"))
    trials = runs.filter(pl.col("level").is_not_null()).join(control, on=keys)
    trials = trials.with_columns((pl.col("value") - pl.col("control")).alias("gain"))
    arm = ["baseline", "learning_rate", "config"]
    by_lineage = trials.group_by([*arm, *keys]).agg(pl.col("gain").mean(), pl.len().alias("cells"))
    by_arm = by_lineage.group_by(arm).agg(
        pl.col("gain").mean(),
        (pl.col("gain").std() / pl.len().sqrt()).alias("standard_error"),
        pl.len().alias("lineages"),
        pl.col("cells").sum(),
    )
    complete = by_arm.filter(pl.col("cells") == pl.col("cells").max().over("baseline"))
    choices = []
    for _, group in complete.sort(["baseline", "gain"], descending=[False, True]).group_by(
        "baseline", maintain_order=True
    ):
        best = group.row(0, named=True)
        choices.append(
            Choice(
                baseline=best["baseline"],
                learning_rate=best["learning_rate"],
                config=best["config"],
                gain=best["gain"],
                standard_error=best["standard_error"] or float("nan"),
                second_best=group["gain"][1] if len(group) > 1 else float("nan"),
                num_trials=len(group),
                num_lineages=best["lineages"],
            )
        )
    return choices
