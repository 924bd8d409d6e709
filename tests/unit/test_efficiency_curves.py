"""From the records of a sweep over log sizes to its curves, labels and report."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from replaybench.by_steps import curves_by_steps, measured_collect_cost
from replaybench.errors import ConfigError
from replaybench.plan import SweepSpec, check, load_sweep, sources
from replaybench.record import SweepFolder
from replaybench.report import build_report
from replaybench.results import final_success, read_measured, read_sweep
from replaybench.sweep import Progress, claim, due_runs, run_sweep

ToySweep = Callable[..., SweepSpec]
# Three sizes at 8 updates, and three at which every step is used twice; 128 steps with 8 updates belong to both.
BUDGETS = ((64, 8), (128, 8), (256, 8), (64, 4), (256, 16))


def silent(progress: Progress) -> None:
    """Listens to nothing."""


def sized(toy_sweep: ToySweep) -> SweepSpec:
    budgets = [{"log_steps": steps, "updates": updates} for steps, updates in BUDGETS]
    return toy_sweep(replay_ratios=(), budgets=budgets, levels=("stale",))


def test_each_budget_is_a_cell_with_its_own_ratio(toy_sweep: ToySweep, toy_data: Path) -> None:
    """Batches of 32: 8 updates on 64 steps use each 4 times."""
    spec = sized(toy_sweep)
    assert [(cell.updates, cell.replay_ratio) for cell in spec.cells()] == [(8, 4), (8, 2), (8, 1), (4, 2), (16, 2)]
    assert len(check(spec, sources(spec, toy_data))) == 3


def test_budgets_and_replay_ratios_exclude_each_other(tmp_path: Path) -> None:
    """A sweep says how much is logged in one of two ways."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\ndatasets = ["gridworld-5x5"]\nlineages = [0]\nlevels = ["fresh"]\nbaselines = ["zero"]\n'
        'reference = "zero"\nreplay_ratios = [1]\nbudgets = [{ log_steps = 10, updates = 1 }]\n'
    )
    with pytest.raises(ConfigError, match="either replay_ratios or budgets"):
        load_sweep(str(path))


@pytest.mark.slow
def test_curves_never_mix_what_is_held_fixed(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """One curve at 8 updates, one at replay ratio 2, each through the final successes of its own three sizes.

    Two cells share level and replay ratio, so the tables name the size with the level; the report has the section.
    """
    spec, folder = sized(toy_sweep), SweepFolder(tmp_path / "out")
    folder.path.mkdir()
    planned = claim(folder, spec, sources(spec, toy_data))
    assert run_sweep(folder, due_runs(folder, planned, None, None), 2, silent).failed == 0
    sweep = read_sweep(folder)
    assert set(sweep.levels.values()) == {None, "stale, 64 steps", "stale, 128 steps", "stale, 256 steps"}
    success = final_success(read_measured(folder)).filter(pl.col("level").is_not_null())
    assert len(success) == len(BUDGETS) * 2 * 2
    curves = curves_by_steps(read_measured(folder), sweep, {"toy": 0.25})
    designs = {"8 updates on every log": [4, 2, 1], "replay ratio 2.0 on every log": [2, 2, 2]}
    assert set(curves["design"]) == set(designs)
    for design, ratios in designs.items():
        for baseline, lineage in (("gipo", 0), ("gipo", 1), ("ppo_clip", 1)):
            mine = (pl.col("baseline") == baseline) & (pl.col("lineage") == lineage)
            points = curves.filter(mine & (pl.col("design") == design)).sort("steps")
            assert points["steps"].to_list() == [64, 128, 256]
            assert (points["learner_samples"] / points["steps"]).to_list() == ratios
            for steps, ratio, value, score in zip(
                points["steps"], ratios, points["value"], points["score"], strict=True
            ):
                cell = mine & (pl.col("level") == f"stale, {steps:g} steps") & (pl.col("replay_ratio") == ratio)
                assert value == success.filter(cell)["value"].item()
                assert score == pytest.approx((value - 0.25) / 0.75)
    page = build_report(folder).index.read_text(encoding="utf-8")
    assert 'id="sample-efficiency"' in page
    assert "the 7.5x of the literature is" in page
    table = pl.read_csv(folder.path / "report" / "tables" / "speed-up.csv")
    assert set(table["baseline"]) == {"gipo"} and set(table["n"]) == {2}
    drawn = pl.read_csv(folder.path / "report" / "figures" / "11-sample-efficiency.csv")
    place = (pl.col("baseline") == "gipo") & (pl.col("steps") == 256) & (pl.col("design") == "8 updates on every log")
    behind = [run.run_id() for run in planned if (run.baseline, run.replay_ratio) == ("gipo", 1.0)]
    assert drawn.filter(place & (pl.col("kind") == "mean"))["runs"].to_list() == ["\n".join(sorted(behind))]


def test_the_price_of_a_step_is_the_median_over_the_runs_that_measured_it() -> None:
    """Ratios 2, 4 and 30 have median 4; a control learns nothing and has no say."""
    records = [
        {"seconds_per_environment_step": step, "seconds_per_learner_sample": sample}
        for step, sample in ((2.0, 1.0), (4.0, 1.0), (3.0, 0.1), (1.0, None))
    ]
    assert measured_collect_cost(records) == pytest.approx(4.0)
    assert measured_collect_cost([{}]) is None
