"""Diagnostics by age of the data and sign of the advantage: means by hand, and a figure that names its points."""

from pathlib import Path

import polars as pl
import pytest
from test_results import plan_runs, run_rows

from replaybench import plots
from replaybench.diagnostics import Rows
from replaybench.record import SweepFolder
from replaybench.report.ages import ages_table, draw_ages
from replaybench.report.material import gather
from replaybench.spec import RunSpec

MANIFEST = {"wall_s": 2.0, "host": {"cores": 2}, "versions": {"torch": "2"}}


def rows_of(run: RunSpec) -> Rows:
    """On stale data the share of old bad actions that lose their weight is .1 and .3, plus .01 a lineage."""
    rows = run_rows(run, 0.5)
    if run.level == "stale":
        for update, value in ((1, 0.1), (5, 0.3)):
            rows.add(update, "suppressed_share_old_negative", value + 0.01 * run.lineage)
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Three lineages of two data sets."""
    sweep = SweepFolder(tmp_path)
    for run in plan_runs(tmp_path):
        sweep.write_result(run, rows_of(run), {"run_id": run.run_id(), **MANIFEST})
    return sweep


def test_a_bucket_has_the_mean_over_updates_and_lineages(folder: SweepFolder) -> None:
    """.2 + .01 lineage over lineages 0, 1, 2: .21 from six lineages of two data sets; no other bucket has a row."""
    table = ages_table(gather(folder))
    assert set(table.select("level", "measure", "bucket").iter_rows()) == {
        ("stale", "suppressed_share", "old_negative")
    }
    assert table["value"].to_list() == pytest.approx([0.21] * len(table))
    assert table["n"].unique().to_list() == [6]
    assert (table["low"] < 0.21).all() and (table["high"] > 0.21).all()


def test_each_replay_ratio_has_a_figure_whose_points_say_what_they_are(folder: SweepFolder) -> None:
    """Two ratios, two trained arms."""
    drawings = draw_ages(gather(folder))
    assert [drawing.name for drawing in drawings] == ["3-ages-R1", "3-ages-R8"]
    svg = plots.render(drawings[0].figure).svg
    assert svg.count('<g class="mark">') == 2
    assert "gipo, stale, replay ratio 1\nvalue 0.21 [" in svg


def test_a_sweep_without_such_rows_has_no_figure(tmp_path: Path) -> None:
    """Records of before the buckets were logged."""
    sweep = SweepFolder(tmp_path)
    for run in plan_runs(tmp_path):
        sweep.write_result(run, run_rows(run, 0.5), {"run_id": run.run_id(), **MANIFEST})
    assert draw_ages(gather(sweep)) == []
    assert isinstance(ages_table(gather(sweep)), pl.DataFrame)
