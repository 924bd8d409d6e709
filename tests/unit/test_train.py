"""Whole runs on a small log of the slippery grid: what is reproducible, what is shared, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaybench.diagnostics import Rows
from replaybench.errors import ContractError, DataError
from replaybench.evaluate import evaluate, open_world
from replaybench.learner import Learner, Step
from replaybench.plan import SweepSpec, check, runs, sources
from replaybench.replay import Replay
from replaybench.spec import RunSpec
from replaybench.store import Log, open_log
from replaybench.train import load_replay, load_start_policy, train

CPU = torch.device("cpu")
MakeRun = Callable[..., RunSpec]
Table = list[tuple[int, str, int, float]]


@pytest.fixture
def log(toy_data: Path) -> Log:
    return open_log(toy_data / "toy" / "lineage-000")


@pytest.fixture
def make_run(toy_sweep: Callable[..., SweepSpec], toy_data: Path) -> MakeRun:
    """Returns a function that plans one run on the stale level at replay ratio 4; keyword arguments replace fields."""

    def make(baseline: str = "gipo", **changes: Any) -> RunSpec:
        spec = toy_sweep()
        found = sources(spec, toy_data)
        planned = runs(spec, found, check(spec, found))
        wanted = ("stale", 4.0) if baseline != "zero" else (None, None)
        run = next(run for run in planned if run.baseline == baseline and (run.level, run.replay_ratio) == wanted)
        train_changes, evaluate_changes = changes.pop("train", {}), changes.pop("evaluate", {})
        return run.model_copy(
            update={
                "train": run.train.model_copy(update=train_changes),
                "evaluate": run.evaluate.model_copy(update=evaluate_changes),
                **changes,
            }
        )

    return make


def table(rows: Rows) -> Table:
    return list(zip(rows.update, rows.metric, rows.item, rows.value, strict=True))


def values_of(rows: Rows, metric: str) -> dict[int, float]:
    """The metric by update, where it has one value for each."""
    return {update: value for update, name, item, value in table(rows) if name == metric and item == -1}


def test_the_same_run_gives_the_same_rows_and_another_seed_others(log: Log, make_run: MakeRun) -> None:
    """Every measurement is a function of the run's spec; the seed changes data and batches."""
    first = table(train(make_run(), log).rows)
    torch.manual_seed(5)
    assert table(train(make_run(), log).rows) == first
    assert table(train(make_run(seed=1), log).rows) != first


def test_both_formats_of_a_log_give_the_same_rows(log: Log, make_run: MakeRun) -> None:
    """HDF5 and Arrow hold the same episodes, so a run does not depend on which is read."""
    assert table(train(make_run(data_format="hdf5"), log).rows) == table(train(make_run(data_format="arrow"), log).rows)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int], Replay]]:
    """Records what every optimiser step of the test is made on: which kind, which decisions, of which replay."""
    batches: list[tuple[str, list[int], Replay]] = []
    value_step, policy_step = Learner.value_step, Learner.policy_step

    def record_value_step(self: Learner, index: torch.Tensor) -> float:
        batches.append(("value", index.tolist(), self.replay))
        return value_step(self, index)

    def record_policy_step(self: Learner, index: torch.Tensor) -> Step:
        batches.append(("policy", index.tolist(), self.replay))
        return policy_step(self, index)

    monkeypatch.setattr(Learner, "value_step", record_value_step)
    monkeypatch.setattr(Learner, "policy_step", record_policy_step)
    return batches


def test_all_baselines_see_the_same_episodes_and_minibatches(
    log: Log, make_run: MakeRun, seen: list[tuple[str, list[int], Replay]]
) -> None:
    """Two corrections step on the same decisions of the same episodes in the same order."""
    train(make_run("gipo"), log)
    first = list(seen)
    seen.clear()
    train(make_run("ppo_clip"), log)
    assert [(kind, index) for kind, index, _ in seen] == [(kind, index) for kind, index, _ in first]
    assert torch.equal(seen[0][2].observations, first[0][2].observations)
    assert torch.equal(seen[0][2].action_tokens, first[0][2].action_tokens)


def test_the_replay_ratio_is_what_was_asked_for(
    log: Log, make_run: MakeRun, seen: list[tuple[str, list[int], Replay]]
) -> None:
    """With R = 4, 8 updates of 32 are made on 64 decisions, each used 4 times; the warm-up comes before."""
    result = train(make_run(), log)
    assert [kind for kind, _, _ in seen] == ["value"] * 4 + ["policy"] * 8
    used = np.bincount(np.concatenate([index for kind, index, _ in seen if kind == "policy"]))
    assert used.tolist() == [4] * 64
    assert values_of(result.rows, "replay_ratio_realised") == {8: 4.0}
    assert values_of(result.rows, "replay_steps") == {0: 64.0}


def test_a_replay_holds_its_levels_own_episodes(log: Log, make_run: MakeRun) -> None:
    """The stale level is the older policy's (version 0), the fresh one the start policy's (version 40)."""
    assert set(load_replay(make_run(), log, CPU).behaviour_version.tolist()) == {0}
    assert set(load_replay(make_run(level="fresh"), log, CPU).behaviour_version.tolist()) == {40}


def test_a_seed_draws_other_episodes_and_a_ratio_does_not_share_its_draw(log: Log, make_run: MakeRun) -> None:
    """Which episodes are replayed varies with the seed; on fresh logs the first one alone already differs."""
    replays = [load_replay(make_run(seed=seed), log, CPU) for seed in range(4)]
    assert len({tuple(replay.reward) + tuple(replay.log_mu.flatten().tolist()) for replay in replays}) == 4


def test_logits_are_read_only_for_a_kl_penalty(log: Log, make_run: MakeRun) -> None:
    """A run without penalty does not load the logged logits; one with it finds them."""
    assert load_replay(make_run(), log, CPU).mu_logits is None
    assert load_replay(make_run(train={"kl_coefficient": 0.1}), log, CPU).mu_logits is not None


def test_the_control_measures_the_start_policy_and_trains_nothing(log: Log, make_run: MakeRun) -> None:
    """A run without level is the evaluation of the newest checkpoint, made here a second time by hand."""
    spec = make_run("zero")
    assert spec.level is None
    result = train(spec, log)
    start = load_start_policy(log, CPU)
    card = log.card
    outcome = evaluate(start, open_world(card.suite, card.suite_settings, card.task), spec.evaluate, CPU, greedy=False)
    weights, start_weights = result.policy.state_dict(), start.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in start_weights.items())
    assert values_of(result.rows, "success") == {0: outcome.success.mean()}
    assert values_of(result.rows, "episode_length") == {0: outcome.length.mean()}
    assert values_of(result.rows, "return") == {0: pytest.approx(outcome.total_reward.mean())}
    items = [value for _, metric, _, value in table(result.rows) if metric == "episode_success"]
    assert items == outcome.success.tolist()


def test_training_changes_the_policy_and_reports_how_far(log: Log, make_run: MakeRun) -> None:
    """After 8 updates the policy differs from the start, and the rows' distance to the start says so."""
    result = train(make_run(), log)
    start = load_start_policy(log, CPU).state_dict()
    assert not torch.equal(result.policy.state_dict()["logits"], start["logits"])
    (distance,) = values_of(result.rows, "end_kl_start").values()
    assert distance > 1e-4
    assert list(values_of(result.rows, "success")) == [8]


def test_no_updates_leave_the_start_policy(log: Log, make_run: MakeRun) -> None:
    """With 0 updates only the value head is warmed up: the distance to the start policy is exactly 0."""
    result = train(make_run(train={"updates": 0}), log)
    assert values_of(result.rows, "end_kl_start") == {0: 0.0}
    assert torch.equal(result.policy.state_dict()["logits"], load_start_policy(log, CPU).state_dict()["logits"])


def test_intermediate_evaluations_do_not_change_the_run(log: Log, make_run: MakeRun) -> None:
    """Evaluating every 3 of 8 updates, and greedily too, adds rows at 3, 6 and 8 and changes nothing else."""
    plain = train(make_run(), log)
    watched = train(make_run(evaluate={"every": 3, "greedy": True}), log)
    assert list(values_of(watched.rows, "success")) == [3, 6, 8]
    assert list(values_of(watched.rows, "greedy_success")) == [3, 6, 8]
    assert torch.equal(watched.policy.state_dict()["logits"], plain.policy.state_dict()["logits"])
    assert values_of(watched.rows, "success")[8] == values_of(plain.rows, "success")[8]


def test_diagnostics_are_written_every_so_often_and_at_the_last_update(log: Log, make_run: MakeRun) -> None:
    """With log_every = 3, updates 1, 4, 7 and the last one, 8, are described."""
    rows = train(make_run(train={"log_every": 3}), log).rows
    assert list(values_of(rows, "grad_norm")) == [1, 4, 7, 8]


def test_a_log_that_is_too_short_is_refused_with_its_place(log: Log, make_run: MakeRun) -> None:
    """The error names dataset, lineage and level, and says how many steps there are."""
    with pytest.raises(DataError, match=r"dataset 'toy', lineage 0, level 'stale'.*needs 6400"):
        train(make_run(replay_ratio=0.04), log)


def test_a_baseline_that_changed_since_the_plan_is_refused(log: Log, make_run: MakeRun) -> None:
    """Results must not be filed under the digest of other code."""
    with pytest.raises(ContractError, match="changed on disk"):
        train(make_run(baseline_sha256="0" * 64), log)
