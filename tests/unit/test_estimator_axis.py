"""The axis of advantage estimators from the spec to the learner: what is accepted, when values are recomputed, on what.

The table's equations are tested in test_estimators.py; here are the settings, the plan, the replay and the policy.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaybench import learner as learner_module
from replaybench.baseline import load_baseline
from replaybench.episode import Episode
from replaybench.errors import ConfigError, DataError, NumericalError
from replaybench.estimators import ESTIMATORS
from replaybench.learner import Learner, estimate_advantages, predict_action_values, predict_values
from replaybench.maths.advantages import Advantages
from replaybench.plan import SweepSpec, check, runs, sources
from replaybench.policy import has_action_values, make_policy
from replaybench.policy.tabular import TabularPolicy, TabularQPolicy
from replaybench.replay import (
    Replay,
    comparable_episodes,
    episode_minibatches,
    minibatches,
    pack,
    starts_pass,
)
from replaybench.spec import AdvantageSettings, RunSpec, TrainSettings, validate

CPU = torch.device("cpu")
STATES, ACTIONS = 5, 3


def make_episode(index: int, length: int, **changes: Any) -> Episode:
    """Returns a walk over a table of states; odd ones are truncated."""
    rng = np.random.default_rng(index)
    truncated = index % 2 == 1
    values: dict[str, Any] = {
        "observations": rng.integers(0, STATES, (length + 1, 1)).astype(np.float32),
        "action_tokens": rng.integers(0, ACTIONS, (length, 1)).astype(np.int16),
        "log_mu": -rng.exponential(size=(length, 1)).astype(np.float32),
        "reward": rng.normal(size=length).astype(np.float32),
        "value": rng.normal(size=length).astype(np.float32),
        "terminated": not truncated,
        "truncated": truncated,
        "bootstrap_value": float(rng.normal()) if truncated else 0.0,
        "behaviour_version": 7,
        "task": "toy",
        "instruction": "walk",
        "seed": index,
        "success": False,
        "simulator": "toy 1",
        "episode_id": f"e{index}",
    }
    return Episode(**values | changes)


def make_replay(lengths: tuple[int, ...] = (4, 2, 3)) -> Replay:
    return pack([make_episode(index, length) for index, length in enumerate(lengths)], CPU)


def make_q_policy() -> TabularQPolicy:
    policy = TabularQPolicy(num_states=STATES, num_bins=ACTIONS)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(1))
        policy.q.normal_(generator=torch.Generator().manual_seed(2))
    return policy


def make_learner(policy: Any, replay: Replay, **advantage: Any) -> Learner:
    baseline = load_baseline("ppo_clip")
    settings = TrainSettings(advantage=AdvantageSettings.model_validate(advantage))
    return Learner(policy, baseline, baseline.config(), replay, settings)


def test_the_default_settings_are_written_as_they_always_were() -> None:
    """A later setting at its default is left out of the record, so that finished runs keep their ids."""
    assert AdvantageSettings().model_dump(mode="json") == {
        "estimator": "gae",
        "gamma": 0.99,
        "lam": 0.95,
        "rho_bar": 1.0,
        "c_bar": 1.0,
        "normalise": "batch",
        "recompute_every": 16,
    }


def test_a_leak_is_recorded_and_rebuilt() -> None:
    """alpha = 0.5 stands in the JSON, inside other records too, and comes back."""
    settings = TrainSettings(advantage=AdvantageSettings(estimator="leaky_vtrace", alpha=0.5))
    assert settings.model_dump(mode="json")["advantage"]["alpha"] == 0.5
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(("given", "kept"), [("batch", 1), ("epoch", "epoch"), (1, 1), (16, 16)])
def test_recomputation_is_set_in_updates_or_words(given: object, kept: object) -> None:
    """ "batch" is one update by another name, so that both spellings are the same run."""
    settings = AdvantageSettings.model_validate({"recompute_every": given})
    assert settings.recompute_every == kept
    assert AdvantageSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("given", [0, -1, 1.5, True, "pass", None, [1]])
def test_another_interval_is_refused_with_what_is_possible(given: object) -> None:
    """The message names the key and the words."""
    with pytest.raises(ConfigError, match="'recompute_every': is a number of updates from 1, 'batch'.*'epoch'"):
        validate(AdvantageSettings, {"recompute_every": given}, "my.toml")


def test_a_misspelt_estimator_gets_the_nearest_one_and_its_key() -> None:
    """The message names file, key, suggestion and list."""
    with pytest.raises(ConfigError, match=r"^my\.toml: 'advantage\.estimator': Unknown .*mean 'gae_stored'.*vtrace"):
        validate(TrainSettings, {"advantage": {"estimator": "gae_store"}}, "my.toml")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages_are_scaled_once(name: str) -> None:
    """An estimator that is defined with its own scale is refused with the batch's on top, and accepted without."""
    assert AdvantageSettings(estimator=name, normalise="none").estimator == name
    if ESTIMATORS[name].normalises:
        with pytest.raises(ConfigError, match=f"'{name}' says itself how .* set normalise = \"none\""):
            validate(AdvantageSettings, {"estimator": name}, "my.toml")
    else:
        assert AdvantageSettings(estimator=name).normalise == "batch"


@pytest.mark.parametrize(("num_steps", "batch_size", "updates"), [(10, 4, 20), (8, 8, 5), (3, 7, 6), (12, 4, 9)])
def test_a_pass_starts_where_its_first_decision_is_drawn(num_steps: int, batch_size: int, updates: int) -> None:
    """Counted draw by draw: a batch starts a pass if one of its draws has a number that the log's length divides."""
    expected = [
        any(draw % num_steps == 0 for draw in range(update * batch_size, (update + 1) * batch_size))
        for update in range(updates)
    ]
    found = [starts_pass(update * batch_size, batch_size, num_steps) for update in range(updates)]
    assert found == expected
    assert found[0]


def refreshes(settings: dict[str, Any], batches: Callable[[Replay], Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The updates before which a learner estimates anew."""
    replay = make_replay((4, 2, 3, 1))
    learner = make_learner(make_q_policy(), replay, **settings)
    made: list[int] = []
    update = used = 0
    monkeypatch.setattr(Learner, "refresh_advantages", lambda self: made.append(update))
    for update, index in enumerate(batches(replay)):
        learner.refresh_if_due(update, used, len(index))
        used += len(index)
    return made


@pytest.mark.parametrize(
    ("every", "expected"),
    [("batch", list(range(10))), (3, [0, 3, 6, 9]), ("epoch", [0, 2, 5, 7])],
)
def test_values_are_recomputed_when_the_spec_says(
    every: object, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten batches of 4 from 10 decisions: by hand, draws 0, 10, 20 and 30 lie in batches 0, 2, 5 and 7."""
    assert (
        refreshes(
            {"recompute_every": every},
            lambda replay: minibatches(replay.num_steps, 4, 10, np.random.default_rng(0)),
            monkeypatch,
        )
        == expected
    )


def test_batches_of_whole_episodes_have_passes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their sizes, between two recomputations about one whole pass of episodes is used."""
    sizes: list[int] = []

    def batches(replay: Replay) -> Any:
        for index in episode_minibatches(replay.ends, 3, 12, np.random.default_rng(0)):
            sizes.append(len(index))
            yield index

    made = refreshes({"recompute_every": "epoch"}, batches, monkeypatch)
    assert made[0] == 0
    assert len(made) >= 3
    for first, second in pairwise(made):
        # Draws before the second recomputation's batch fall short of the next pass; with that batch they reach it.
        assert sum(sizes[:second]) <= -(-sum(sizes[: first + 1]) // 10) * 10 < sum(sizes[: second + 1])


def test_recomputed_every_batch_advantages_follow_the_value_head() -> None:
    """With "batch" each update sees advantages of the values just before it; with stored values none ever changes."""
    replay = make_replay()
    fresh, stored = (
        make_learner(make_q_policy(), replay, estimator=name, recompute_every="batch") for name in ("gae", "gae_stored")
    )
    for learner in (fresh, stored):
        learner.refresh_if_due(0, 0, 4)
        before = learner.advantage.clone()
        learner.policy_step(torch.arange(4))
        learner.refresh_if_due(1, 4, 4)
        assert torch.equal(before, learner.advantage) == (learner is stored)
        expected = estimate_advantages(learner.policy, replay, learner.settings.advantage).advantage
        np.testing.assert_allclose(learner.advantage.numpy(), expected, rtol=1e-6)


def test_episodes_are_compared_within_task_and_behaviour_version() -> None:
    """By hand: tasks a and b, versions 0 and 1; the same version of another task is another group."""
    marks = [("a", 0), ("b", 0), ("a", 1), ("a", 0), ("b", 0), ("a", 1), ("a", 0)]
    episodes = [
        make_episode(index, 2 + index % 2, task=task, behaviour_version=version)
        for index, (task, version) in enumerate(marks)
    ]
    assert comparable_episodes(pack(episodes, CPU)).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_lone_episode_of_a_version_is_refused_with_what_to_log() -> None:
    """The message names task and version, and says to log two episodes of each."""
    episodes = [make_episode(0, 2), make_episode(1, 2), make_episode(2, 3, behaviour_version=9)]
    with pytest.raises(DataError, match=r"Task 'toy', behaviour version 9 has one episode.*log at least two episodes"):
        comparable_episodes(pack(episodes, CPU))
    settings = AdvantageSettings(estimator="grpo", normalise="none")
    with pytest.raises(DataError, match="version 9 has one episode"):
        estimate_advantages(make_q_policy(), pack(episodes, CPU), settings)


def test_group_advantages_come_from_the_logged_rewards_of_the_replay() -> None:
    """Through pack, with values recomputed at truncations: Dr. GRPO of three episodes summed here by hand."""
    policy, replay = make_q_policy(), make_replay()
    found = estimate_advantages(policy, replay, AdvantageSettings(estimator="dr_grpo", normalise="none", gamma=0.9))
    totals = []
    for index, length in enumerate((4, 2, 3)):
        episode = make_episode(index, length)
        after = float(policy.value(torch.from_numpy(episode.observations[-1:])).detach()) if episode.truncated else 0.0
        discounted = sum(0.9**step * float(reward) for step, reward in enumerate(episode.reward))
        totals.append(discounted + 0.9**length * after)
    mean = sum(totals) / 3
    expected = np.repeat([total - mean for total in totals], (4, 2, 3))
    np.testing.assert_allclose(found.advantage, expected, rtol=1e-6)
    assert np.abs(found.advantage).min() > 1e-3


def test_a_tabular_q_policy_values_states_by_its_own_distribution() -> None:
    """V(s) is the sum of pi(a|s) Q(s, a) written out, the same in forward and value."""
    policy = make_q_policy()
    states = torch.tensor([[0.0], [3.0]])
    for row, state in zip(policy.value(states), (0, 3), strict=True):
        logits, q = policy.logits[state, 0].tolist(), policy.q[state].tolist()
        weights = np.exp(logits) / np.exp(logits).sum()
        assert float(row.detach()) == pytest.approx(sum(w * v for w, v in zip(weights, q, strict=True)), rel=1e-6)
    assert torch.equal(policy(states).value_B, policy.value(states))
    assert policy.action_values(states).tolist() == policy.q[[0, 3]].tolist()


def test_fitting_a_tabular_q_policys_value_leaves_its_logits_alone() -> None:
    """The value's gradient reaches the action values only, and the two parameter lists cover everything once."""
    policy = make_q_policy()
    policy.value(torch.tensor([[1.0], [2.0]])).sum().backward()
    assert policy.logits.grad is None
    assert policy.q.grad is not None
    assert policy.q.grad.abs().sum() > 0
    parts = [*policy.policy_parameters(), *policy.value_parameters()]
    assert {id(part) for part in parts} == {id(part) for part in policy.parameters()}
    assert len(parts) == 2


def test_a_tabular_q_policy_is_rebuilt_from_its_settings() -> None:
    """Kind, settings and weights make the same policy, as a log's checkpoint needs."""
    policy = make_q_policy()
    again = make_policy("tabular_q", policy.settings, torch.Generator())
    again.load_state_dict(policy.state_dict())
    states = torch.arange(STATES)[:, None].float()
    assert torch.equal(again(states).logits_BAK, policy(states).logits_BAK)
    assert torch.equal(again.value(states), policy.value(states))
    assert has_action_values("tabular_q")
    assert not has_action_values("tabular")


@pytest.mark.parametrize("name", ["retrace", "tree_backup"])
def test_action_values_are_fitted_to_their_targets(name: str) -> None:
    """Half the mean squared error of Q at the logged actions alone, in a value step and beside a policy step."""
    replay = make_replay()
    index = torch.arange(replay.num_steps)
    for kind in ("value", "policy"):
        learner = make_learner(make_q_policy(), replay, estimator=name)
        learner.refresh_advantages()
        policy = make_q_policy()
        states = replay.observations[replay.row][:, 0].long()
        chosen = policy.q[states, replay.action_tokens[:, 0].long()]
        loss = 0.5 * (chosen - learner.value_target).square().mean()
        loss.backward()
        made = learner.value_step(index) if kind == "value" else learner.policy_step(index).value_loss
        assert made == pytest.approx(float(loss.detach()), rel=1e-6)
        fitted = learner.policy.value_parameters()[0]
        assert policy.q.grad is not None
        assert fitted.grad is not None
        torch.testing.assert_close(fitted.grad, policy.q.grad)


def test_action_values_of_a_log_are_looked_up_one_by_one() -> None:
    """Q(s_t, a_t) of every decision, whatever chunk it is read in."""
    policy, replay = make_q_policy(), make_replay()
    found = predict_action_values(policy, replay)
    states = replay.observations[replay.row][:, 0].long().tolist()
    for value, state, action in zip(found, states, replay.action_tokens[:, 0].tolist(), strict=True):
        assert value == pytest.approx(float(policy.q[state, action].detach()))
    assert len(predict_values(policy, replay)) == replay.num_steps + 3


@pytest.mark.parametrize("name", ["retrace", "tree_backup"])
def test_a_learner_without_action_values_is_refused(name: str) -> None:
    """Also outside a sweep, the estimator says what the policy lacks."""
    with pytest.raises(ConfigError, match=f"'{name}' needs action_values, which the policy lacks.*choose another"):
        make_learner(TabularPolicy(num_states=STATES, num_bins=ACTIONS), make_replay(), estimator=name)


def planned(spec: SweepSpec, data: Path) -> list[RunSpec]:
    found = sources(spec, data)
    return runs(spec, found, check(spec, found))


def with_estimator(spec: SweepSpec, **advantage: Any) -> SweepSpec:
    settings = AdvantageSettings.model_validate(advantage)
    return spec.model_copy(update={"train": spec.train.model_copy(update={"advantage": settings})})


@pytest.mark.parametrize("name", ["retrace", "tree_backup"])
def test_action_values_are_asked_for_when_the_sweep_is_planned(
    name: str, toy_sweep: Callable[..., SweepSpec], toy_data: Path
) -> None:
    """A folder's card or a recipe names a policy without them: refused before anything is made or run."""
    spec = with_estimator(toy_sweep(), estimator=name)
    with pytest.raises(ConfigError, match=f"'{name}' needs action_values, which policy 'tabular' of dataset 'toy'"):
        planned(spec, toy_data)
    recipe = spec.model_copy(update={"datasets": ("gridworld-5x5",)})
    with pytest.raises(ConfigError, match=r"'tabular' of dataset 'gridworld-5x5' lacks: .*tabular_q"):
        check(recipe, sources(recipe, toy_data))
    able = spec.model_copy(update={"datasets": ("gridworld-5x5-q",)})
    assert len(check(able, sources(able, toy_data))) == 3


def test_two_policy_ratios_are_possible_by_name_only(toy_sweep: Callable[..., SweepSpec], toy_data: Path) -> None:
    """rho_pg is planned for methods without a ratio and refused beside one, unless its name says double correction."""
    both = toy_sweep(baselines=("zero", "no_correction", "ppo_clip"))
    alone = toy_sweep(baselines=("zero", "no_correction"), reference="no_correction")
    with pytest.raises(ConfigError, match=r"'vtrace_rho_pg' carries a policy ratio, and so does baseline 'ppo_clip'"):
        planned(with_estimator(both, estimator="vtrace_rho_pg"), toy_data)
    assert planned(with_estimator(alone, estimator="vtrace_rho_pg"), toy_data)
    assert planned(with_estimator(both, estimator="vtrace_double_correction"), toy_data)
    assert planned(with_estimator(both, estimator="vtrace"), toy_data)


def test_a_leak_that_overflows_is_an_error_and_no_silent_clamp() -> None:
    """At a log-ratio of 2000 the leaking ratio is infinite, so that nothing is trained on; without a leak it is 1."""
    replay = make_replay()
    replay = replace(replay, log_mu=replay.log_mu - 2000)
    policy = make_q_policy()
    with pytest.raises(NumericalError, match="'leaky_vtrace' are not finite.*alpha = 1"):
        estimate_advantages(policy, replay, AdvantageSettings(estimator="leaky_vtrace", alpha=0.5))
    assert np.isfinite(estimate_advantages(policy, replay, AdvantageSettings(estimator="leaky_vtrace")).advantage).all()


def test_a_broken_value_head_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates that are no numbers stop the run, whatever estimator made them."""
    monkeypatch.setattr(
        learner_module, "predict_values", lambda policy, replay: np.full(len(replay.observations), np.nan)
    )
    with pytest.raises(NumericalError, match="'gae' are not finite"):
        estimate_advantages(make_q_policy(), make_replay(), AdvantageSettings())


def test_a_baseline_defined_with_an_unknown_estimator_is_refused(tmp_path: Path) -> None:
    """A misspelt name in a declaration would otherwise make the method impossible to plan."""
    source = Path(load_baseline("vtrace_pg").path).read_text()
    path = tmp_path / "mine.py"
    path.write_text(source.replace('estimator="vtrace"', 'estimator="vtrase"'))
    with pytest.raises(ConfigError, match="Did you mean 'vtrace'"):
        load_baseline(str(path))


def test_estimates_are_two_columns_of_the_replays_length() -> None:
    """Every estimator returns advantage and target for each decision of a packed log."""
    replay = make_replay()
    for name in ESTIMATORS:
        found = estimate_advantages(make_q_policy(), replay, AdvantageSettings(estimator=name, normalise="none"))
        assert isinstance(found, Advantages)
        assert [column.shape for column in found] == [(9,), (9,)]
