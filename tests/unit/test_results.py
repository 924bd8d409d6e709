"""Reading a sweep's records: against hand computations and the scalar intervals of the analysis."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from replaybench.analysis.compare import RUN_SCHEMA, paired_differences
from replaybench.analysis.intervals import mean_t
from replaybench.baseline import config_record, load_baseline
from replaybench.diagnostics import Rows
from replaybench.plan import SweepSpec
from replaybench.record import SweepFolder
from replaybench.results import (
    arm_labels,
    curves,
    final_success,
    level_facts,
    levels_by_distance,
    lineage_intervals,
    lineage_means,
    manifests,
    read_measured,
    read_sweep,
    replay_ratios,
    short_power,
)
from replaybench.spec import RunSpec
from replaybench.store import Card, CheckpointEntry, LevelCard, ShardEntry, card_digest, write_card

DATASETS = ("door", "drawer")
KL = {"stale": 0.25, "fresh": 0.0}
BASELINES = ("zero", "ppo_clip", "gipo")
UPDATES = 9

Success = Callable[[RunSpec], float | None]


def success_of(run: RunSpec) -> float:
    """A success that a hand can compute: .5 and .01 a lineage; gipo adds .1 on fresh and loses .2 on stale logs."""
    gain = {None: 0.0, "fresh": 0.1, "stale": -0.2}[run.level] if run.baseline == "gipo" else 0.0
    return 0.5 + 0.01 * run.lineage + gain * (1 + 0.1 * run.lineage)


def write_log(folder: Path, dataset: str, lineage: int) -> None:
    """A log folder's card; the report never opens what it lists."""
    folder.mkdir(parents=True)
    shards = [
        ShardEntry(
            path=f"arrow/{level}.arrow",
            sha256="0" * 64,
            level=level,
            format="arrow",
            num_bytes=1,
            num_episodes=10,
            num_steps=100,
        )
        for level in KL
    ]
    levels = {
        level: LevelCard(
            lag_updates=(0, 0) if level == "fresh" else (40, 60),
            measured={"kl": kl * (1 + 0.1 * lineage), "success": 0.5, "num_steps": 100, "ess_token": 1 - kl},
        )
        for level, kl in KL.items()
    }
    card = Card(
        dataset=dataset,
        lineage=lineage,
        suite="grid",
        suite_settings={},
        task=f"{dataset}-open",
        policy="tabular",
        policy_settings={},
        start_checkpoint="start",
        recipe_sha256="",
        licence="CC0-1.0",
        command="replaybench data make",
        versions={},
        levels=levels,
        shards=shards,
        checkpoints=[CheckpointEntry(path="start.safetensors", sha256="0" * 64, name="start", version=1)],
    )
    write_card(folder, card)


def run_rows(run: RunSpec, success: float) -> Rows:
    """The measurements of one run: diagnostics at three updates, an early evaluation and the final one."""
    rows = Rows()
    last = UPDATES if run.level else 0
    if run.level and run.replay_ratio:
        rows.add(0, "replay_ratio_realised", run.replay_ratio)
        rows.add(0, "replay_steps", 400 / run.replay_ratio)
        for update in (1, 5, UPDATES):
            for metric in (
                "ess_token_raw",
                "near_zero_share_positive",
                "near_zero_share_negative",
                "kl_k3_token_raw",
                "score_share_back",
                "grad_norm",
            ):
                rows.add(update, metric, 0.1 * update + 0.01 * run.lineage)
        rows.add(last, "end_kl_k3_behaviour", 0.2 + 0.01 * run.lineage)
        rows.add(last, "end_kl_start", 0.1 + 0.01 * run.lineage)
        rows.add(5, "success", 0.123)
    rows.add(last, "success", success)
    for item in range(3):
        rows.add(last, "episode_success", 1.0, item)
        rows.add(last, "success", 0.999, item)
    return rows


def plan_runs(
    folder: Path,
    datasets: Sequence[str] = DATASETS,
    lineages: Sequence[int] = (0, 1, 2),
    arms: Sequence[tuple[str, dict[str, Any], float]] = tuple((name, {}, 1e-4) for name in BASELINES),
    ratios: Sequence[float] = (1.0, 8.0),
) -> list[RunSpec]:
    """Every run of a small sweep; writes the cards of its logs."""
    spec = SweepSpec(
        name="tiny",
        datasets=datasets,
        lineages=lineages,
        levels=tuple(KL),
        replay_ratios=ratios,
        baselines=BASELINES,
        reference="ppo_clip",
    )
    runs = []
    for dataset in datasets:
        for lineage in lineages:
            log = folder / "data" / dataset / f"lineage-{lineage:03d}"
            write_log(log, dataset, lineage)
            for name, settings, rate in arms:
                baseline = load_baseline(name)
                trains = baseline.declaration.updates_policy
                cells = [(level, ratio) for level in KL for ratio in ratios] if trains else [(None, None)]
                runs += [
                    RunSpec(
                        dataset=dataset,
                        data_folder=str(log),
                        card_sha256=card_digest(log),
                        task=f"{dataset}-open",
                        lineage=lineage,
                        data_format="arrow",
                        level=level,
                        replay_ratio=ratio,
                        baseline=name,
                        baseline_path=None,
                        baseline_sha256=baseline.digest,
                        config=config_record(baseline.config(settings)),
                        seed=0,
                        train=spec.train.model_copy(update={"learning_rate": rate}),
                        evaluate=spec.evaluate,
                    )
                    for level, ratio in cells
                ]
    SweepFolder(folder).claim(
        {"sweep": spec.model_dump(mode="json"), "runs": [run.model_dump(mode="json") for run in runs]}
    )
    return runs


def write_sweep(folder: Path, success: Success = success_of, **plan: Any) -> SweepFolder:
    """A finished sweep written through the public record; a run whose success is None has failed."""
    sweep = SweepFolder(folder)
    for run in plan_runs(folder, **plan):
        value = success(run)
        if value is None:
            sweep.write_failure(run, "NumericalError: overflow", "trace")
            continue
        manifest = {"run_id": run.run_id(), "wall_s": 2.0, "host": {"cores": 2}, "versions": {"torch": "2.13.0"}}
        sweep.write_result(run, run_rows(run, value), manifest)
    return sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep of two data sets, three lineages, two levels, two ratios and three baselines without failures."""
    return write_sweep(tmp_path_factory.mktemp("sweep"))


def test_final_success_has_the_schema_of_the_comparison(folder: SweepFolder) -> None:
    """One row a planned run, in the columns and types that the comparison expects; controls have no level."""
    frame = final_success(read_measured(folder))
    assert dict(frame.schema) == {name: dtype() for name, dtype in RUN_SCHEMA.items()}
    assert len(frame) == 2 * 3 * (1 + 2 * 4)
    assert frame.filter(pl.col("level").is_null())["baseline"].unique().to_list() == ["zero"]


def test_final_success_is_the_last_evaluation_of_the_run(folder: SweepFolder) -> None:
    """Neither the evaluation on the way (.123) nor a per-episode row (.999) is taken for the result."""
    planned = {(r.dataset, r.lineage, r.level, r.replay_ratio, r.baseline): success_of(r) for r in folder.runs()}
    found = {
        (r["dataset"], r["lineage"], r["level"], r["replay_ratio"], r["baseline"]): r["value"]
        for r in final_success(read_measured(folder)).iter_rows(named=True)
    }
    assert found == planned


def test_the_comparison_reads_what_the_records_hold(folder: SweepFolder) -> None:
    """gipo - ppo_clip on fresh is .1 (1 + .1 lineage): .1, .11, .12 in both data sets, mean .11 by hand."""
    table = paired_differences(final_success(read_measured(folder)), "ppo_clip")
    row = table.filter(
        (pl.col("dataset") == "all")
        & (pl.col("level") == "fresh")
        & (pl.col("replay_ratio") == 8)
        & (pl.col("baseline") == "gipo")
    )
    assert row["estimate"].item() == pytest.approx(0.11)
    assert row["n"].item() == 6


def test_a_run_without_a_manifest_is_missing_not_zero(tmp_path: Path) -> None:
    """A failed run, and one whose rows were written but whose manifest was not, have value null."""
    folder = write_sweep(tmp_path, lambda run: None if run.lineage == 0 else success_of(run), datasets=["door"])
    half_written = next(run for run in folder.runs() if run.lineage == 1 and run.baseline == "gipo")
    (tmp_path / "runs" / half_written.run_id() / "manifest.json").unlink()
    frame = final_success(read_measured(folder))
    assert frame.filter(pl.col("lineage") == 0)["value"].null_count() == 9
    assert frame.filter(pl.col("lineage") == 1)["value"].null_count() == 1
    assert len(manifests(folder)) == 17


def test_a_sweep_without_any_result_has_only_nulls(tmp_path: Path) -> None:
    """Planned runs are there even where nothing ran."""
    plan_runs(tmp_path, datasets=["door"])
    assert final_success(read_measured(SweepFolder(tmp_path)))["value"].null_count() == 27
    assert curves(read_measured(SweepFolder(tmp_path)), ["success"]).is_empty()


def test_arms_of_one_baseline_are_told_apart_by_what_varies(tmp_path: Path) -> None:
    """The label names the varying setting and the learning rate only where they vary; both then are baselines."""
    arms = [
        ("zero", {}, 1e-4),
        ("ppo_clip", {}, 1e-4),
        ("gipo", {"sigma": 0.2}, 1e-4),
        ("gipo", {"sigma": 0.5}, 1e-4),
        ("gipo", {"sigma": 0.5}, 3e-4),
    ]
    folder = write_sweep(tmp_path, datasets=["door"], arms=arms)
    expected = {
        "zero",
        "ppo_clip",
        "gipo (sigma=0.2, lr 1e-4)",
        "gipo (sigma=0.5, lr 1e-4)",
        "gipo (sigma=0.5, lr 3e-4)",
    }
    assert set(arm_labels(folder.runs()).values()) == expected
    assert set(final_success(read_measured(folder))["baseline"]) == expected
    assert set(curves(read_measured(folder), ["grad_norm"])["baseline"]) == expected - {"zero"}


def test_only_the_learning_rate_is_named_where_only_it_varies(tmp_path: Path) -> None:
    """Two learning rates at the same settings give labels without settings, and the first planned is the reference."""
    runs = plan_runs(tmp_path, arms=[("zero", {}, 1e-4), ("ppo_clip", {}, 3e-4), ("ppo_clip", {}, 1e-4)])
    assert set(arm_labels(runs).values()) == {"zero", "ppo_clip (lr 1e-4)", "ppo_clip (lr 3e-4)"}
    assert read_sweep(SweepFolder(tmp_path)).reference == "ppo_clip (lr 3e-4)"


@pytest.mark.parametrize(("value", "text"), [(1e-4, "1e-4"), (2.5e-4, "2.5e-4"), (0.02, "2e-2"), (1.0, "1e0")])
def test_learning_rates_are_short(value: float, text: str) -> None:
    """Written by hand."""
    assert short_power(value) == text


def test_curves_leave_out_rows_of_single_episodes(folder: SweepFolder) -> None:
    """Each training run has two evaluations, each control one; no row is per episode."""
    rows = curves(read_measured(folder), ["success"])
    assert len(rows) == 2 * 3 * (1 + 2 * 8)
    assert 0.999 not in rows["value"].to_list()


def test_lineage_intervals_are_the_t_intervals_of_the_analysis() -> None:
    """Many groups at once give what `mean_t` gives for each of them alone, also below two lineages."""
    rng = np.random.default_rng(3)
    groups = {"a": rng.normal(size=6), "b": rng.normal(size=3), "c": np.full(4, 0.1), "d": np.array([0.7])}
    means = pl.DataFrame(
        [
            {"name": name, "lineage": i, "value": value}
            for name, values in groups.items()
            for i, value in enumerate(values)
        ]
    )
    found = lineage_intervals(means, ["name"])
    assert found["n"].to_list() == [6, 3, 4, 1]
    for row in found.iter_rows(named=True):
        expected = mean_t(groups[row["name"]])
        bounds = [np.nan if row[name] is None else row[name] for name in ("value", "low", "high")]
        np.testing.assert_allclose(bounds, [expected.estimate, expected.low, expected.high], rtol=1e-12)


def test_seeds_are_averaged_before_lineages() -> None:
    """Lineage 0 with seeds .2 and .4 counts once, as .3."""
    rows = pl.DataFrame({"level": ["fresh"] * 3, "lineage": [0, 0, 1], "seed": [0, 1, 0], "value": [0.2, 0.4, 0.9]})
    assert lineage_means(rows, ["level"])["value"].to_list() == pytest.approx([0.3, 0.9])


def test_level_facts_are_what_the_cards_measured(folder: SweepFolder) -> None:
    """Stale, lineage 2: KL .25 (1 + .2) = .3 by hand, lag 40 to 60."""
    facts = level_facts(folder.runs())
    chosen = facts.frame.filter(
        (pl.col("dataset") == "door")
        & (pl.col("lineage") == 2)
        & (pl.col("level") == "stale")
        & (pl.col("metric") == "kl")
    )
    assert facts.unread == []
    assert chosen.select("lag_low", "lag_high", "value").row(0) == (40, 60, pytest.approx(0.3))


def test_a_card_that_changed_since_the_sweep_is_left_out_and_named(tmp_path: Path) -> None:
    """Facts never come from other data than the runs were made on."""
    folder = write_sweep(tmp_path, datasets=["door"])
    changed, gone = (tmp_path / "data" / "door" / f"lineage-00{i}" for i in (1, 2))
    (changed / "card.toml").write_text((changed / "card.toml").read_text() + "\n")
    (gone / "card.toml").unlink()
    facts = level_facts(folder.runs())
    assert facts.unread == [str(changed), str(gone)]
    assert facts.frame["lineage"].unique().to_list() == [0]


def test_levels_are_ordered_by_measured_distance_not_by_name_or_plan(folder: SweepFolder) -> None:
    """The plan says stale, fresh; KL .25 and 0 put fresh first. Without facts the plan's order stays."""
    sweep = read_sweep(folder)
    facts = level_facts(sweep.runs).frame
    assert levels_by_distance(sweep, facts) == ["fresh", "stale"]
    assert levels_by_distance(sweep, facts.clear()) == ["stale", "fresh"]


def test_replay_ratios_state_what_was_realised(folder: SweepFolder) -> None:
    """At ratio 8 the runs had 400 / 8 = 50 logged steps; 2 training baselines x 3 lineages are 6 runs."""
    row = replay_ratios(read_measured(folder)).filter(
        (pl.col("dataset") == "drawer") & (pl.col("level") == "stale") & (pl.col("replay_ratio") == 8)
    )
    assert row.drop("dataset", "level", "replay_ratio").row(0) == (8.0, 8.0, 50, 50, 6)
