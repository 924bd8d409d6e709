"""Everything that a report is made from, read once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from replaybench import plots
from replaybench.analysis.compare import POOLED, improvement_over_start, level_summary, paired_differences
from replaybench.baseline import Baseline, baseline_paths, load_baseline
from replaybench.by_steps import measured_collect_cost
from replaybench.errors import ReplayBenchError
from replaybench.record import SweepFolder
from replaybench.report.words import from_to
from replaybench.results import (
    LevelFacts,
    Measured,
    Sweep,
    final_success,
    level_facts,
    levels_by_distance,
    manifests,
    read_measured,
    read_sweep,
)
from replaybench.spec import RunSpec

# Ids that the mark of many runs names; they show how the others are made up.
MAX_LISTED = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Everything that the report is made from; equal to itself only, so that what it leads to is computed once.

    collect_cost: What an environment step costs in learner samples, None if unknown; cost_words says who says so.
    """

    folder: SweepFolder
    sweep: Sweep
    facts: LevelFacts
    measured: Measured
    look: plots.Look
    success: pl.DataFrame
    summary: pl.DataFrame
    differences: pl.DataFrame
    improvement: pl.DataFrame
    manifests: list[dict[str, Any]]
    collect_cost: float | None
    cost_words: str

    @cached_property
    def datasets(self) -> list[str]:
        """The data sets of the sweep, sorted."""
        return sorted({run.dataset for run in self.sweep.runs})

    @cached_property
    def settings(self) -> list[tuple[float, str]]:
        """The (replay ratio, level) pairs, levels from fresh to stale."""
        cells = {(run.replay_ratio, self.sweep.levels[run.run_id()]) for run in self.sweep.runs}
        return [(r, level) for r in self.sweep.spec.ratios() for level in self.look.levels if (r, level) in cells]

    @cached_property
    def first_runs(self) -> dict[str, RunSpec]:
        """One run of each arm, by label."""
        found: dict[str, RunSpec] = {}
        for run in self.sweep.runs:
            found.setdefault(self.sweep.labels[run.run_id()], run)
        return dict(sorted(found.items()))


def gather(folder: SweepFolder, collect_cost: float | None = None) -> Material:
    """Reads the records and computes the tables.

    Args:
        collect_cost: Cost of an environment step in learner samples; as measured in the runs if it is not given.
    """
    sweep = read_sweep(folder)
    facts = level_facts(sweep.runs)
    measured = read_measured(folder)
    success = final_success(measured)
    levels = levels_by_distance(sweep, facts.frame)
    baseline_of = {sweep.labels[run.run_id()]: run.baseline for run in sweep.runs}
    ordered = dict(sorted(baseline_of.items(), key=lambda item: (item[0] != sweep.control, item[0])))
    look = plots.Look(
        styles=plots.styles(ordered, list(baseline_paths()), sweep.control),
        levels=levels,
        control=sweep.control,
        reference=sweep.reference,
    )
    records = manifests(folder)
    given = collect_cost is not None
    return Material(
        folder=folder,
        sweep=sweep,
        facts=facts,
        measured=measured,
        look=look,
        success=success,
        summary=level_summary(success),
        differences=paired_differences(success, sweep.reference),
        improvement=improvement_over_start(success, sweep.control),
        manifests=records,
        collect_cost=collect_cost if given else measured_collect_cost(records),
        cost_words="as given" if given else "the median of what the runs took for either on their machines",
    )


def n_words(material: Material) -> str:
    """Returns how many lineages a comparison rests on."""
    counts = sorted(set(material.differences.filter(pl.col("dataset") == POOLED)["n"].to_list()))
    return "n = 0 lineages" if not counts else f"n = {from_to(counts[0], counts[-1])} lineages"


def listed_runs() -> pl.Expr:
    """Returns what names the runs of a group from its `run_id`, one a line: at most MAX_LISTED, and how many more."""
    more = pl.format("\nand {} more", pl.len() - MAX_LISTED)
    return pl.concat_str(
        pl.col("run_id").sort().head(MAX_LISTED).str.join("\n"),
        pl.when(pl.len() > MAX_LISTED).then(more).otherwise(pl.lit("")),
    )


def with_runs(material: Material, table: pl.DataFrame) -> pl.DataFrame:
    """Adds the column `runs`: ids of the runs behind each row, one a line, of which at most MAX_LISTED are named.

    A row without a lineage stands for all of them, one of data set POOLED for those of all data sets.
    """
    runs = material.measured.runs.filter(pl.col("run_id").is_in(list(material.measured.finished)))
    every = pl.concat([runs, runs.with_columns(dataset=pl.lit(POOLED))], how="vertical_relaxed")
    every = pl.concat([every, every.with_columns(lineage=pl.lit(None, every.schema["lineage"]))])
    columns = ("dataset", "replay_ratio", "level", "baseline", "lineage")
    place = [name for name in columns if name in table.columns or name == "lineage"]
    joined = every.group_by(place).agg(runs=listed_runs())
    if "lineage" not in table.columns:
        joined = joined.filter(pl.col("lineage").is_null()).drop("lineage")
        place.remove("lineage")
    return table.join(joined, on=place, how="left", nulls_equal=True, maintain_order="left")


def loaded_baseline(run: RunSpec) -> Baseline | None:
    """Returns the baseline file that the run used, or None where it is gone or another one now."""
    try:
        baseline = load_baseline(run.baseline_path or run.baseline)
    except ReplayBenchError:
        return None
    return baseline if baseline.digest == run.baseline_sha256 else None
