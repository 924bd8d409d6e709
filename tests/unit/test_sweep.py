"""Carrying out a sweep: data are made or checked, missing runs are run, and a resumed sweep is a whole one."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from replaybench.errors import ConfigError, DataError, RunFailed
from replaybench.plan import Source, SweepSpec, sources
from replaybench.recipe import load_recipe
from replaybench.record import SweepFolder
from replaybench.spec import RunSpec
from replaybench.store import card_digest, read_card, verify
from replaybench.store.card import write_card
from replaybench.store.files import locked
from replaybench.sweep import (
    Outcome,
    Progress,
    _make_lineage_job,
    claim,
    due_runs,
    make_data,
    retry_failed,
    run_sweep,
    status,
)

ToySweep = Callable[..., SweepSpec]
RAISES = '''"""Fails on purpose. No arXiv id: a test. Differs: always."""
from dataclasses import dataclass
from replaybench.baseline import Declaration

@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing."""

DECLARATION = Declaration(paper="none", bounded=False)

def surrogate(items, config):
    raise RuntimeError("on purpose")
'''


def silent(progress: Progress) -> None:
    """Listens to nothing."""


def claimed(spec: SweepSpec, data: Path, out: Path) -> tuple[SweepFolder, list[RunSpec]]:
    folder = SweepFolder(out)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder, claim(folder, spec, sources(spec, data))


def results(folder: SweepFolder) -> pl.DataFrame:
    paths = sorted((folder.path / "runs").glob("*/rows.parquet"))
    return pl.concat([pl.read_parquet(path) for path in paths])


def short(toy_sweep: ToySweep, baselines: tuple[str, ...] = ("zero", "ppo_clip", "gipo")) -> SweepSpec:
    return toy_sweep(lineages=(0,), levels=("stale",), replay_ratios=(1.0,), baselines=baselines)


@pytest.mark.slow
def test_a_sweep_that_is_resumed_is_the_same_as_one_in_one_go(
    toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """Two runs first, then the rest, with other numbers of workers: the same rows, and nothing was run twice."""
    spec = short(toy_sweep)
    whole, planned = claimed(spec, toy_data, tmp_path / "whole")
    assert run_sweep(whole, due_runs(whole, planned, None, None), 2, silent).completed == 3
    parts, planned = claimed(spec, toy_data, tmp_path / "parts")
    first = due_runs(parts, planned, None, 2)
    assert len(first) == 2
    run_sweep(parts, first, 1, silent)
    manifests = {path: path.stat().st_mtime_ns for path in parts.path.glob("runs/*/manifest.json")}
    assert len(manifests) == 2
    parts, planned = claimed(spec, toy_data, tmp_path / "parts")
    rest = due_runs(parts, planned, None, None)
    assert [run.run_id() for run in rest] == [run.run_id() for run in planned[2:]]
    run_sweep(parts, rest, 2, silent)
    assert {path: path.stat().st_mtime_ns for path in manifests} == manifests
    assert results(parts).equals(results(whole))
    assert due_runs(parts, planned, None, None) == []


@pytest.mark.slow
def test_a_failing_baseline_is_recorded_and_the_others_go_on(
    toy_sweep: ToySweep, toy_data: Path, tmp_path: Path
) -> None:
    """Its run has a reason and a traceback and is not due again, until it is retried; the others are complete."""
    path = tmp_path / "broken.py"
    path.write_text(RAISES)
    spec = short(toy_sweep, ("zero", "ppo_clip", str(path)))
    folder, planned = claimed(spec, toy_data, tmp_path / "out")
    heard: list[Progress] = []
    assert run_sweep(folder, due_runs(folder, planned, None, None), 1, heard.append) == Outcome(2, 1, 0)
    (failure,) = folder.failures()
    assert failure["reason"] == "RuntimeError: on purpose"
    assert "in surrogate" in (folder.path / "failed" / failure["run_id"] / "traceback.txt").read_text()
    counts = [(row["baseline"], row["complete"], row["failed"], row["planned"]) for row in status(folder, planned)]
    assert counts == [("zero", 1, 0, 1), ("ppo_clip", 1, 0, 1), ("broken", 0, 1, 1)]
    assert status(folder, folder.runs()) == status(folder, planned)
    assert [(item.stage, item.done, item.total) for item in heard] == [("runs", n, 3) for n in (0, 1, 2, 3)]
    assert [item.error for item in heard if item.error] == ["RuntimeError: on purpose"]
    assert all(0 <= item.success <= 1 for item in heard if item.success is not None)
    assert due_runs(folder, planned, None, None) == []
    assert retry_failed(folder) == 1
    assert [run.baseline for run in due_runs(folder, planned, None, None)] == ["broken"]


def test_only_and_limit_choose_among_what_is_missing(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """`only` is a part of the run's id; `limit` counts from the front of the plan."""
    folder, planned = claimed(toy_sweep(), toy_data, tmp_path / "out")
    assert due_runs(folder, planned, None, None) == planned
    assert due_runs(folder, planned, None, 3) == planned[:3]
    assert {run.baseline for run in due_runs(folder, planned, "-gipo-", None)} == {"gipo"}
    assert due_runs(folder, planned, "no such run", None) == []
    folder.write_failure(planned[0], "reason", "traceback")
    assert due_runs(folder, planned, None, 3) == planned[1:4]


def test_a_folder_of_another_sweep_is_refused(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """Any difference of spec, data or baseline makes it another one; the same one may go on."""
    claimed(toy_sweep(), toy_data, tmp_path / "out")
    claimed(toy_sweep(), toy_data, tmp_path / "out")
    for other in (
        toy_sweep(seeds=(1,)),
        toy_sweep(evaluate={"episodes": 11}),
        toy_sweep(baselines=("zero", "ppo_clip")),
    ):
        with pytest.raises(ConfigError, match="another sweep"):
            claimed(other, toy_data, tmp_path / "out")


def test_data_made_elsewhere_must_be_complete(toy_sweep: ToySweep, toy_data: Path) -> None:
    """A lineage that the sweep asks for and the folder lacks is named before anything runs."""
    found = sources(toy_sweep(), toy_data)
    make_data(found, (0, 1), 1, "none", silent)
    with pytest.raises(DataError, match=r"lineage-007: there is no log of lineage 7"):
        make_data(found, (0, 7), 1, "none", silent)


@pytest.mark.slow
def test_missing_lineages_are_made_and_complete_ones_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remains of an interrupted attempt are replaced; a second call makes nothing; another recipe is refused.

    Meanwhile the lineage tells what it does.
    """
    monkeypatch.setattr("replaybench.executor.MEANWHILE_S", 0.02)
    recipe = load_recipe("gridworld-5x5")
    source = Source(recipe.name, tmp_path / recipe.name, recipe)
    remains = tmp_path / recipe.name / "lineage-000" / "arrow" / "fresh-00000.arrow"
    remains.parent.mkdir(parents=True)
    remains.write_text("half a shard")
    heard: list[Progress] = []
    make_data([source], [0], 1, "a command", heard.append)
    assert [(item.stage, item.done, item.total, item.error) for item in heard if not item.doing] == [
        ("logs", 0, 1, None),
        ("logs", 1, 1, None),
    ]
    doing = [item.doing for item in heard if item.doing]
    assert doing
    assert all(line.startswith("dataset 'gridworld-5x5', lineage 0: ") for line in doing)
    assert not list(tmp_path.rglob("*.doing"))
    heard.clear()
    card = remains.parents[1] / "card.toml"
    assert 'command = "a command"' in card.read_text()
    assert "arrow/fresh-00000.arrow" in verify(card.parent)
    written = card.stat().st_mtime_ns
    make_data([source], [0], 1, "another command", heard.append)
    assert not heard
    assert card.stat().st_mtime_ns == written
    changed = source._replace(recipe=recipe.model_copy(update={"max_steps": 41}))
    with pytest.raises(DataError, match="another version of recipe 'gridworld-5x5'"):
        make_data([changed], [0], 1, "a command", silent)


@pytest.mark.slow
def test_a_lineage_that_another_sweep_is_making_is_waited_for_and_kept(toy_data: Path, tmp_path: Path) -> None:
    """Its unfinished folder is left alone, and what it finished is used."""
    recipe = load_recipe("gridworld-5x5")
    folder = tmp_path / "lineage-000"
    payload = {"recipe": recipe.model_dump(), "lineage": 0, "folder": str(folder), "command": "the second"}
    second = threading.Thread(target=_make_lineage_job, args=(json.dumps(payload),))
    with locked(tmp_path / ".lineage-000.lock"):
        unfinished = shutil.copytree(
            toy_data / "toy" / "lineage-000", folder, ignore=shutil.ignore_patterns("card.toml")
        )
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert list(unfinished.rglob("*.arrow"))
        card = read_card(toy_data / "toy" / "lineage-000")
        write_card(folder, card.model_copy(update={"recipe_sha256": recipe.digest()}))
        digest = card_digest(folder)
    second.join()
    assert card_digest(folder) == digest


def test_recipes_are_checked_before_the_first_lineage_is_begun(tmp_path: Path) -> None:
    """The second of two cannot be made: neither is begun."""
    good = load_recipe("gridworld-5x5")
    bad = good.model_copy(update={"suite_settings": {"expert_widht": 0.5}})
    sources = [Source("good", tmp_path / "good", good), Source("bad", tmp_path / "bad", bad)]
    heard: list[Progress] = []
    with pytest.raises(ConfigError, match="Did you mean 'expert_width'"):
        make_data(sources, [0], 1, "none", heard.append)
    assert not heard
    assert not (tmp_path / "good").exists()


@pytest.mark.slow
def test_a_lineage_that_cannot_be_made_is_named_and_leaves_no_card(tmp_path: Path) -> None:
    """A recipe whose success band lies out of reach stops with what to change, and nothing looks complete."""
    recipe = load_recipe("gridworld-5x5")
    hopeless = recipe.model_copy(update={"warm_start": recipe.warm_start.model_copy(update={"success": (0.99, 1.0)})})
    source = Source("hopeless", tmp_path / "hopeless", hopeless)
    with pytest.raises(RunFailed, match=r"lineage 0: behaviour cloning missed the band \[0\.99, 1\.0\]"):
        make_data([source], [0], 1, "none", silent)
    assert not list(tmp_path.rglob("card.toml"))


@pytest.mark.slow
def test_a_log_that_changed_since_the_plan_is_not_run_on(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """A run whose card no longer has the planned digest is recorded as failed."""
    folder, planned = claimed(short(toy_sweep), toy_data, tmp_path / "out")
    other = planned[1].model_copy(update={"card_sha256": "0" * 64})
    assert run_sweep(folder, [other], 1, silent).failed == 1
    assert "its card changed since the sweep was planned" in folder.failures()[0]["reason"]


@pytest.mark.slow
def test_a_manifest_says_when_where_and_with_what(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """Clocks and versions are in the manifest, under the run's id, and in no table."""
    folder, planned = claimed(short(toy_sweep), toy_data, tmp_path / "out")
    run_sweep(folder, planned[:1], 1, silent)
    place = folder.path / "runs" / planned[0].run_id()
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["run_id"] == planned[0].run_id()
    assert manifest["wall_s"] > 0
    assert manifest["versions"]["simulator"] == "gridworld 1"
    assert {"replaybench", "torch", "numpy"} <= set(manifest["versions"])
    assert "python" in manifest["host"]
    assert set(results(folder)["metric"]) == {"success", "episode_length", "return", "episode_success"}
