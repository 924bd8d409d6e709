"""Group sums of real surrogates against sums by hand, and the table of a study on a small log."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from replaybench.analysis.bias_variance import exact_moments, paper_cells
from replaybench.baseline import load_baseline
from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError
from replaybench.gradient_study import (
    SCHEMA,
    StudySettings,
    gradient_study,
    open_logs,
    preset_methods,
    readable,
    study_logs,
)
from replaybench.gradients import GradientMeter
from replaybench.policy.tabular import TabularPolicy
from replaybench.probe import GroupSums, Probed, combine, group_sums, joint_objective, method_objective
from replaybench.replay import pack
from replaybench.spec import TrainSettings
from replaybench.store import LevelCard, Log, open_log
from replaybench.study import coefficient_of

CPU = torch.device("cpu")
SETTINGS = StudySettings(ns=(1, 8, 64), num_groups=10, train=TrainSettings(batch_size=64))
Make = Callable[..., Any]


@pytest.fixture
def log(toy_data: Path) -> Log:
    return open_log(toy_data / "toy" / "lineage-000")


def method(name: str, **settings: object) -> tuple[Any, Any]:
    baseline = load_baseline(name)
    return baseline, baseline.config(settings)


def one_step_episode(action: int, log_mu: float) -> Episode:
    return Episode(
        observations=np.zeros((2, 1), np.float32),
        action_tokens=np.array([[action]], np.int16),
        log_mu=np.array([[log_mu]], np.float32),
        reward=np.ones(1, np.float32),
        value=np.zeros(1, np.float32),
        terminated=True,
        truncated=False,
        bootstrap_value=0.0,
        behaviour_version=0,
        task="one",
        instruction="",
        seed=0,
        success=True,
        simulator="none",
        episode_id=f"{action}",
    )


def exact_probe(cell_number: int, repeats: int) -> tuple[TabularPolicy, Probed]:
    """Returns a cell of the exact study as a policy, and each of its 4 actions logged `repeats` times, in turn."""
    cell = paper_cells()[cell_number]
    policy = TabularPolicy(num_states=1, num_bins=4)
    policy.logits.data.copy_(torch.from_numpy(np.log(cell.target_K)).view(1, 1, 4))
    log_mu = np.log(cell.behaviour_K)
    replay = pack([one_step_episode(a, log_mu[a]) for a in range(4)] * repeats, CPU)
    return policy, Probed(replay=replay, advantage=torch.from_numpy(np.tile(cell.advantage_K, repeats)).float())


def sums_of(policy: TabularPolicy, probed: Probed, name: str, groups: int, unit: int, **settings: object) -> GroupSums:
    baseline, config = method(name, **settings)
    objective = method_objective(policy, baseline, config, probed, TrainSettings(), 0)
    return group_sums(GradientMeter(policy), probed.replay, objective, groups, unit)


@pytest.mark.parametrize("name", ["gipo", "ppo_clip", "sapo", "importance_sampling"])
def test_group_sums_give_the_exact_moments_of_the_closed_form_study(name: str) -> None:
    """With one group an action, weighting by mu gives the closed-form mean and variance of every logit's gradient."""
    cell = paper_cells()[8]
    policy, probed = exact_probe(8, repeats=2)
    baseline, config = method(name)
    objective = method_objective(policy, baseline, config, probed, TrainSettings(), 0)
    found = group_sums(GradientMeter(policy), probed.replay, objective, 8)
    gradient_KP = found.gradient[:4].double().numpy()
    coefficient = coefficient_of(baseline, config)
    exact = [exact_moments(cell.target_K, cell.behaviour_K, cell.advantage_K, coefficient, logit) for logit in range(4)]
    mean = cell.behaviour_K @ gradient_KP
    assert mean == pytest.approx([moments.mean for moments in exact], abs=1e-6)
    second = cell.behaviour_K @ found.squared_norm[:4].numpy()
    assert second - mean @ mean == pytest.approx(sum(moments.variance for moments in exact), abs=1e-6)


def test_a_unit_of_several_episodes_has_one_norm() -> None:
    """Batches of 2 episodes: 8 units in 4 groups, each unit's squared norm that of the sum of its two gradients."""
    policy, probed = exact_probe(0, repeats=4)
    single = sums_of(policy, probed, "gipo", groups=16, unit=1)
    pairs = sums_of(policy, probed, "gipo", groups=4, unit=2)
    expected = single.gradient.view(8, 2, -1).sum(1).square().sum(1).view(4, 2).sum(1)
    assert pairs.squared_norm.numpy() == pytest.approx(expected.numpy(), rel=1e-5)
    assert pairs.gradient.numpy() == pytest.approx(single.gradient.view(4, 4, -1).sum(1).numpy(), abs=1e-6)
    assert pairs.sample.units.tolist() == [2.0] * 4
    assert pairs.sample.steps.tolist() == [4.0] * 4


def test_a_batch_statistic_is_taken_over_its_own_batch() -> None:
    """m2po in batches of 4 drops what it drops in these 4 episodes alone, whatever batches it is measured beside."""
    policy, probed = exact_probe(3, repeats=16)
    stale = replace(probed.replay, log_mu=probed.replay.log_mu - torch.linspace(0, 1, 64).unsqueeze(1))
    probed = Probed(replay=stale, advantage=probed.advantage)
    together = sums_of(policy, probed, "m2po", groups=16, unit=4)
    whole = sums_of(policy, probed, "m2po", groups=8, unit=8)
    baseline, config = method("m2po")
    meter = GradientMeter(policy)
    objective = method_objective(policy, baseline, config, probed, TrainSettings(), 0)
    for group in range(16):
        index = torch.arange(4 * group, 4 * group + 4)
        alone = meter.measure(
            stale.observations[stale.row[index]],
            torch.zeros(4, dtype=torch.long),
            lambda logits, index=index: objective(index, torch.zeros(4, dtype=torch.long), logits),
        )
        assert together.gradient[group].numpy() == pytest.approx(alone.total.numpy(), abs=1e-6)
    assert not torch.allclose(whole.gradient, together.gradient.view(8, 2, -1).sum(1), atol=1e-3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """A chunk of 30 decisions, less than a group, gives the same table up to float32 rounding."""
    whole = gradient_study(log, "stale", [method("gipo")], SETTINGS)
    monkeypatch.setattr("replaybench.probe.CHUNK", 30)
    pieces = gradient_study(log, "stale", [method("gipo")], SETTINGS)
    for name in ("bias2", "variance", "mse"):
        assert pieces[name].to_numpy() == pytest.approx(whole[name].to_numpy(), rel=1e-3, abs=1e-9)


def test_step_level_importance_sampling_is_its_own_reference(log: Log) -> None:
    """Its weight bias is 0 on a stale log, its data bias is the total one, and the interval of doing nothing holds
    the squared reference that all corrections share."""
    train = SETTINGS.train.model_copy(update={"granularity": "step"})
    table = gradient_study(log, "stale", [method("importance_sampling")], replace(SETTINGS, train=train))
    row = table.row(0, named=True)
    assert (row["baseline"], row["granularity"]) == ("importance_sampling", "step")
    assert row["bias2_weight"] == pytest.approx(0.0, abs=1e-12)
    assert row["bias2"] == pytest.approx(row["bias2_data"], rel=1e-4)
    assert row["bias2_low"] < 0 < row["bias2_high"]


def test_the_table_of_a_stale_level(log: Log) -> None:
    """Every column, one row a correction and n with the zero estimator added; variance falls as 1/n, mse is its sum
    with bias2, ranks follow mse, and the value function's episodes are not measured on."""
    table = gradient_study(log, "stale", [method("gipo", sigma=0.2), method("no_correction")], SETTINGS)
    assert dict(table.schema) == SCHEMA
    assert table["baseline"].unique(maintain_order=True).to_list() == ["gipo", "no_correction", "zero"]
    assert table.height == 9
    assert table["num_episodes"].unique().to_list() == [120]
    assert table["num_fresh_episodes"].unique().to_list() == [96]
    assert json.loads(table["config"][0])["sigma"] == 0.2
    assert table["mse"].to_numpy() == pytest.approx((table["bias2"] + table["variance"]).to_numpy(), rel=1e-9)
    gipo = table.filter(pl.col("baseline") == "gipo").sort("n")
    assert (gipo["variance"] * gipo["n"]).to_numpy() == pytest.approx(gipo["variance"][0], rel=1e-12)
    zero = table.filter(pl.col("baseline") == "zero")
    assert zero["variance"].to_list() == [0.0] * 3
    for _, part in table.group_by("n"):
        assert part.sort("mse")["rank"].to_list() == [1, 2, 3]
    for name in ("bias2_weight", "bias2_data", "bias2", "variance", "mse"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()


def test_a_fresh_level_is_its_own_control(log: Log) -> None:
    """On fresh data every ratio is 1: no weight bias, shared ranks, and disjoint halves for log and reference."""
    table = gradient_study(log, "fresh", [method("gipo"), method("ppo_clip")], SETTINGS)
    trained = table.filter(pl.col("baseline") != "zero")
    assert trained["bias2_weight"].to_numpy() == pytest.approx(0.0, abs=1e-9)
    assert (trained["num_episodes"] + trained["num_fresh_episodes"]).unique().to_list() == [96]
    for _, part in trained.group_by("n"):
        assert part["rank"].n_unique() == 1


def test_the_same_seed_gives_the_same_table_and_another_does_not(log: Log) -> None:
    """Which episodes go where depends on the seed alone, not on which corrections are measured."""
    first = gradient_study(log, "stale", [method("gipo")], SETTINGS)
    again = gradient_study(log, "stale", [method("ppo_clip"), method("gipo")], SETTINGS)
    other = gradient_study(log, "stale", [method("gipo")], replace(SETTINGS, seed=1))
    of_gipo = pl.col("baseline") == "gipo"
    assert first.filter(of_gipo).drop("rank").equals(again.filter(of_gipo).drop("rank"))
    assert first["bias2"][0] != other["bias2"][0]


def test_batch_statistics_are_measured_where_there_are_batches_enough(log: Log) -> None:
    """With 120 episodes batches of 1 and 8 are 8 or more, batches of 64 are not, and get no row."""
    table = gradient_study(log, "stale", [method("m2po")], SETTINGS)
    assert table.filter(pl.col("baseline") == "m2po")["n"].to_list() == [1, 8]


def test_a_log_without_fresh_episodes_tells_the_weight_part(log: Log) -> None:
    """Its value function is fitted on a fifth of the level, and what needs the on-policy gradient is null."""
    levels = {"stale": LevelCard(lag_updates=(40, 40))}
    shards = [shard for shard in log.card.shards if shard.level == "stale"]
    log.card = log.card.model_copy(update={"levels": levels, "shards": shards})
    row = gradient_study(log, "stale", [method("gipo")], SETTINGS).row(0, named=True)
    assert row["num_episodes"] == 96
    assert row["bias2_weight"] > 0
    assert {row[name] for name in ("bias2", "bias2_data", "mse", "cosine", "rank", "num_fresh_episodes")} == {None}


def test_what_cannot_be_measured_is_refused(log: Log) -> None:
    """Unknown level, no numbers of episodes, a correction whose needs are not logged or of another estimator."""
    with pytest.raises(ConfigError, match="Did you mean 'stale'"):
        gradient_study(log, "stal", [method("gipo")], SETTINGS)
    with pytest.raises(ConfigError, match="from 1 up"):
        gradient_study(log, "stale", [method("gipo")], replace(SETTINGS, ns=(0,)))
    with pytest.raises(ConfigError, match="'gae'"):
        gradient_study(log, "stale", [method("vtrace_pg")], SETTINGS)
    unlagged = {**log.card.levels, "stale": LevelCard(branch_updates=40)}
    log.card = log.card.model_copy(update={"levels": unlagged})
    with pytest.raises(ConfigError, match="needs lag_updates"):
        gradient_study(log, "stale", [method("a3po")], SETTINGS)
    with pytest.raises(DataError, match="leaves 120 episodes to measure on and 2 of the start policy"):
        gradient_study(log, "stale", [method("gipo")], replace(SETTINGS, fit_share=0.98))


def test_a_batch_larger_than_the_log_is_refused() -> None:
    """Batches of 100 out of 16 episodes are none: the error says how many are needed."""
    policy, probed = exact_probe(0, repeats=4)
    with pytest.raises(DataError, match="16 episodes make 0 batches of 100; at least 8"):
        group_sums(GradientMeter(policy), probed.replay, joint_objective(probed), 4, 100)


def test_inner_products_are_those_of_the_stacked_group_sums() -> None:
    """The Gram matrix of method, reference and fresh groups is numpy's product of their gradients."""
    policy, probed = exact_probe(2, repeats=4)
    gipo = sums_of(policy, probed, "gipo", groups=4, unit=1)
    plain = sums_of(policy, probed, "no_correction", groups=4, unit=1)
    stacked = torch.cat([gipo.gradient, plain.gradient, plain.gradient]).double().numpy()
    assert combine(gipo, plain, plain).gram == pytest.approx(stacked @ stacked.T, rel=1e-6, abs=1e-12)


def test_logs_are_found_by_name_by_folder_and_alone(toy_data: Path) -> None:
    """A data set's name, a folder of lineages, one log folder and chosen lineages; others are refused by name."""
    assert [log.card.lineage for log in open_logs(toy_data, "toy")] == [0, 1]
    assert [log.card.lineage for log in open_logs(Path("data"), str(toy_data / "toy"), [1])] == [1]
    assert [log.card.lineage for log in open_logs(Path("data"), str(toy_data / "toy" / "lineage-001"))] == [1]
    with pytest.raises(ConfigError, match="Did you mean 'toy'"):
        open_logs(toy_data, "toyy")
    with pytest.raises(ConfigError, match=r"Unknown lineage of dataset 'toy' '3'\. Known: 0, 1"):
        open_logs(toy_data, "toy", [3])


def test_methods_come_tuned_or_along_their_knob() -> None:
    """Named baselines have the default sweep's settings; along the knob they start from the file's own defaults."""
    (tuned,) = preset_methods(["gipo"])
    swept = preset_methods(["gipo"], along_knob=True)
    assert tuned[1].sigma == 0.2
    assert [config.sigma for _, config in swept] == [1.0, 0.1, 0.2, 0.5, 2.0]
    assert {baseline.name for baseline, _ in preset_methods([])} >= {"zero", "gipo", "ppo_clip"}


def test_rows_can_be_read(log: Log) -> None:
    """A number is shown with its interval, a config without what is not set; progress names each correction once."""
    lines: list[str] = []
    rows = study_logs([log], ["stale"], [method("gipo")], SETTINGS, lines.append)
    shown = readable(rows)
    assert lines == ["toy, lineage 0, stale: gipo"]
    assert shown[0]["config"] == {"sigma": 1.0, "kernel": "gaussian"}
    low, high = rows[0]["mse_low"], rows[0]["mse_high"]
    assert shown[0]["mse"] == f"{rows[0]['mse']:.2g} [{low:.2g}, {high:.2g}]"
