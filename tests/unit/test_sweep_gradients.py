"""Gradients on a sweep's own logs: the study of each log, in one table, and the figures that it gives."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from replaybench.baseline import load_baseline
from replaybench.errors import ConfigError, RunFailed
from replaybench.gradient_study import StudySettings, gradient_study
from replaybench.plan import GradientSettings, SweepSpec, sources
from replaybench.record import SweepFolder
from replaybench.report.figures import draw_one
from replaybench.report.gradients import gradient_words
from replaybench.report.material import gather
from replaybench.store import open_log
from replaybench.sweep import claim, run_sweep
from replaybench.sweep_gradients import gradients_path, measure_due_gradients, measure_gradients

ToySweep = Callable[..., SweepSpec]
NS = (1, 8)


def claimed(spec: SweepSpec, data: Path, path: Path) -> SweepFolder:
    folder = SweepFolder(path)
    path.mkdir()
    claim(folder, spec, sources(spec, data))
    return folder


def measure(folder: SweepFolder, lineages: tuple[int, ...] | None = None, *, along_knob: bool = False) -> pl.DataFrame:
    return measure_gradients(folder, NS, lineages, along_knob=along_knob, workers=1, listen=lambda _: None)


def test_the_table_is_the_study_of_every_log(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """Both lineages and levels, each once whatever the number of runs on it; one of them against the study itself."""
    folder = claimed(toy_sweep(), toy_data, tmp_path / "out")
    table = measure(folder)
    assert table.select("dataset", "lineage", "level").unique().height == 4
    assert set(table["baseline"]) == {"zero", "ppo_clip", "gipo"}
    assert pl.read_parquet(gradients_path(folder, along_knob=False)).equals(table)
    methods = [(baseline, baseline.config()) for baseline in map(load_baseline, ("ppo_clip", "gipo"))]
    log = open_log(toy_data / "toy" / "lineage-001")
    expected = gradient_study(log, "stale", methods, StudySettings(ns=NS, train=toy_sweep().train))
    found = table.filter((pl.col("lineage") == 1) & (pl.col("level") == "stale"))
    order = ["n", "baseline"]
    assert found.sort(order).drop("dataset").equals(expected.sort(order).drop("dataset"))


def test_the_report_shows_them_once_they_are_measured(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """Figures by number of episodes and along the knob, with sentences; before, the figure is unknown."""
    folder = claimed(toy_sweep(replay_ratios=(1.0,)), toy_data, tmp_path / "out")
    run_sweep(folder, folder.runs(), 2, lambda _: None)
    with pytest.raises(ConfigError, match="Unknown figure"):
        draw_one(gather(folder), "6-gradients")
    measure(folder)
    measure(folder, along_knob=True)
    material = gather(folder)
    by_n = draw_one(material, "6-gradients").table
    assert set(by_n["baseline"]) == {"zero", "ppo_clip", "gipo"}
    assert by_n.filter(pl.col("baseline") == "ppo_clip")["estimate"].to_list() == pytest.approx([1.0] * 4)
    along = draw_one(material, "6-gradients-along-knobs").table
    assert set(along["n"]) == {8}
    assert along.filter(pl.col("baseline") == "gipo")["knob_value"].n_unique() > 3
    assert along.filter("may_be_best").select("baseline", "level").unique().height == 4
    one, eight = gradient_words(material)
    assert one.startswith("Averages of 1 episode: not moving has less error than ")
    # On fresh logs both corrections are the same.
    assert "They differ from each other on 1 of 2 pairs of data set and level" in eight


def test_a_sweep_that_asks_for_them_gets_them_once_its_runs_have_ended(
    toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """With the numbers of episodes that it names; what has been measured stays, and other sweeps measure nothing."""
    folder = claimed(toy_sweep(gradients=GradientSettings(episodes=NS)), toy_data, tmp_path / "out")
    other = claimed(toy_sweep(), toy_data, tmp_path / "other")
    announced: list[object] = []
    measure_due_gradients(folder, 1, announced.append)
    run_sweep(folder, folder.runs(), 2, lambda _: None)
    run_sweep(other, other.runs(), 2, lambda _: None)
    measure_due_gradients(other, 1, announced.append)
    assert not announced
    measure_due_gradients(folder, 1, announced.append)
    assert set(pl.read_parquet(gradients_path(folder, along_knob=False))["n"]) == set(NS)
    announced.clear()
    measure_due_gradients(folder, 1, announced.append)
    assert not announced


def test_a_lineage_that_the_sweep_lacks_is_refused(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """With the ones that it has."""
    folder = claimed(toy_sweep(), toy_data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"Unknown lineage of the sweep '7'.*Known: 0, 1"):
        measure(folder, (7,))


def test_logs_that_are_gone_are_named_and_nothing_is_written(
    toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """An earlier table stays."""
    moved = tmp_path / "data"
    moved.symlink_to(toy_data)
    folder = claimed(toy_sweep(datasets=(str(moved / "toy"),)), toy_data, tmp_path / "out")
    measure(folder, (0,))
    before = gradients_path(folder, along_knob=False).read_bytes()
    moved.unlink()
    with pytest.raises(RunFailed, match=r"toy lineage 0 fresh: DataError: .*there is no card"):
        measure(folder)
    assert gradients_path(folder, along_knob=False).read_bytes() == before
