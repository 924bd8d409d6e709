"""Acting: what is logged against scipy, and the common random numbers against draws made by hand."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from replaybench.episode import Episode, check_episode
from replaybench.policy.mlp import MLPPolicy
from replaybench.policy.tabular import TabularPolicy
from replaybench.rollout import Acting, Actor, Collector, EpisodePlan, Labels, goal_plans, policy_actor, rollout
from replaybench.seeding import torch_generator
from replaybench.suites import Environment, Transition, make_suite

TOKENS, BINS = 2, 5
LABELS = Labels("count", "count to the goal", "toy 1", 17, "log")
CPU = torch.device("cpu")


class Counter:
    """Observes (goal, steps so far, sum of tokens); ends after `goal` steps, in success if the sum is even."""

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
        self.goal, self.steps, self.total = goal[1], 0, 0
        return self._observation()

    def step(self, action_tokens: NDArray[np.int16]) -> Transition:
        self.steps += 1
        self.total += int(action_tokens.sum())
        over = self.steps == self.goal
        return Transition(self._observation(), 0.5 * self.steps, over, over and self.total % 2 == 0)

    def expert(self) -> NDArray[np.float64]:
        raise NotImplementedError

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self.goal, self.steps, self.total], np.float32)


def actor_of(slope: float) -> Actor:
    """Logits and values that vary with the observation; `slope` makes different policies of them."""

    def act(observations: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        states = np.asarray(observations, np.float32)
        bins = np.arange(BINS, dtype=np.float32)
        first = slope * bins * np.sin(states.sum(1))[:, None]
        logits = np.stack([first, -0.5 * first], axis=1)
        return logits, (states[:, 0] - 10 * states[:, 1]).astype(np.float32)

    return act


def plans_of(lengths: list[int]) -> list[EpisodePlan]:
    return [EpisodePlan((0, length), 100 + i) for i, length in enumerate(lengths)]


def counters(count: int) -> list[Environment]:
    return [Counter() for _ in range(count)]


def run(slope: float = 1.0, *, lengths: list[int] | None = None, environments: int = 2, **acting: Any) -> list[Episode]:
    plans = plans_of(lengths or [3, 9, 1, 4, 6])
    return rollout(actor_of(slope), counters(environments), plans, Acting(**{"max_steps": 6} | acting), LABELS)


def assert_identical(found: list[Episode], expected: list[Episode]) -> None:
    for one, other in zip(found, expected, strict=True):
        for field in fields(Episode):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_episodes_come_back_in_the_order_of_the_plans() -> None:
    """Short episodes end before long ones that began earlier; ids, seeds and lengths still follow the plans."""
    episodes = run()
    assert [episode.num_steps for episode in episodes] == [3, 6, 1, 4, 6]
    assert [episode.seed for episode in episodes] == [100, 101, 102, 103, 104]
    assert [episode.episode_id for episode in episodes] == [f"log-{i:05d}" for i in range(5)]


def test_every_episode_is_well_formed_and_carries_its_labels() -> None:
    """Episodes pass the border's checks, hold T+1 observations, and say who acted on what."""
    for episode, goal in zip(run(), [3, 9, 1, 4, 6], strict=True):
        check_episode(episode)
        steps = np.arange(episode.num_steps + 1)
        np.testing.assert_array_equal(episode.observations[:, 0], goal)
        np.testing.assert_array_equal(episode.observations[:, 1], steps)
        np.testing.assert_array_equal(np.diff(episode.observations[:, 2]), episode.action_tokens.sum(1))
        np.testing.assert_array_equal(episode.reward, 0.5 * steps[1:])
        assert (episode.task, episode.instruction, episode.simulator, episode.behaviour_version) == LABELS[:4]


def test_a_time_limit_truncates_and_bootstraps_the_last_observation() -> None:
    """Goal 9 is cut at 6 steps: its bootstrap value is the actor's value of the 7th observation, 9 - 10 * 6.

    Goals 3, 1, 4 and 6 are reached, the last exactly at the limit: they terminate, with bootstrap value 0.
    """
    episodes = run()
    assert [episode.truncated for episode in episodes] == [False, True, False, False, False]
    assert [episode.terminated for episode in episodes] == [True, False, True, True, True]
    assert [episode.bootstrap_value for episode in episodes] == [0.0, -51.0, 0.0, 0.0, 0.0]
    assert not episodes[1].success
    for episode in episodes:
        if episode.terminated:
            assert episode.success == (episode.observations[-1, 2] % 2 == 0)


def test_log_mu_is_the_log_softmax_of_the_logits_at_the_token() -> None:
    """The logged probability, logits and value are the actor's in the state before the action (scipy's softmax)."""
    for episode in run(slope=2.0):
        logits, values = actor_of(2.0)(episode.observations[:-1])
        expected = np.take_along_axis(log_softmax(logits, -1), episode.action_tokens[..., None], -1)[..., 0]
        np.testing.assert_allclose(episode.log_mu, expected, atol=1e-5)
        np.testing.assert_allclose(episode.value, values)
        assert episode.mu_logits is not None
        np.testing.assert_array_equal(episode.mu_logits, logits.astype(np.float16))


@pytest.mark.parametrize("slope", [0.0, 0.3, 3.0])
def test_actions_are_the_inverse_cdf_of_the_episodes_own_draws(slope: float) -> None:
    """Whatever the policy, decision t of a plan uses the same uniform numbers: those of a generator with its seed.

    The slow twin draws them itself and looks them up in the cumulated softmax. This is what makes two policies
    that are compared on the same plans use common random numbers.
    """
    for episode in run(slope):
        rng = np.random.default_rng(episode.seed)
        logits, _ = actor_of(slope)(episode.observations[:-1])
        for step in range(episode.num_steps):
            for token, draw in enumerate(rng.random(TOKENS)):
                cdf = np.cumsum(softmax(logits[step, token].astype(np.float64)))
                assert episode.action_tokens[step, token] == np.searchsorted(cdf, draw)


def test_a_change_of_policy_in_one_state_leaves_other_episodes_untouched() -> None:
    """On the slippery grid, where the dynamics draw too, only episodes that visit the changed state change."""
    suite = make_suite("gridworld", {})
    settings = suite.policy_settings("gridworld-5x5")
    one, other = TabularPolicy(**settings), TabularPolicy(**settings)
    changed = 12
    with torch.no_grad():
        other.logits[changed, 0, 2] += 5.0
    plans = goal_plans(suite, 1, 40, "test")
    environments = [suite.make("gridworld-5x5") for _ in range(4)]
    before, after = (
        rollout(policy_actor(policy, CPU), environments, plans, Acting(max_steps=20), LABELS) for policy in (one, other)
    )
    visits = [bool((episode.observations[:-1, 0] == changed).any()) for episode in before]
    assert 0 < sum(visits) < len(visits)
    for old, new, visited in zip(before, after, visits, strict=True):
        if not visited:
            assert_identical([new], [old])
    assert any(not np.array_equal(old.action_tokens, new.action_tokens) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("environments", [1, 3, 8])
def test_results_do_not_depend_on_the_number_of_environments(environments: int) -> None:
    """With an actor that treats rows alone, one environment and eight log the same bytes."""
    assert_identical(run(environments=environments), run(environments=2))


def test_results_of_a_network_depend_on_the_number_of_environments_by_rounding_only() -> None:
    """A network's products may be summed in another order for another batch size; decisions stay the same."""
    settings = {"observation_size": 3, "num_action_tokens": TOKENS, "num_bins": BINS, "hidden": 16, "value_hidden": 8}
    actor = policy_actor(MLPPolicy(**settings, generator=torch_generator("test")), CPU)
    plans = plans_of([3, 9, 1, 4, 6])
    one, other = (rollout(actor, counters(count), plans, Acting(max_steps=6), LABELS) for count in (1, 5))
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left.action_tokens, right.action_tokens)
        np.testing.assert_allclose(left.log_mu, right.log_mu, atol=1e-5)
        np.testing.assert_allclose(left.value, right.value, atol=1e-5)


def test_one_observation_alone_gets_what_it_gets_in_a_batch() -> None:
    """Logits and values up to rounding, also after the weights were changed in place; some inputs are clipped."""
    policy = MLPPolicy(
        observation_size=5, num_action_tokens=2, num_bins=7, hidden=16, generator=torch_generator("lone")
    )
    observations = 3 * torch.randn(20, 5, generator=torch_generator("observations"))
    policy.fit_normaliser(observations / 3)
    actor = policy_actor(policy, torch.device("cpu"))
    for _ in range(2):
        with torch.no_grad():
            expected = policy(observations)
        for observation, logits_AK, value in zip(
            observations.numpy(), expected.logits_BAK, expected.value_B, strict=True
        ):
            found_logits, found_value = actor(observation[None])
            assert found_logits.dtype == found_value.dtype == np.float32
            np.testing.assert_allclose(found_logits[0], logits_AK.numpy(), atol=1e-5)
            np.testing.assert_allclose(found_value, [value.item()], atol=1e-5)
        optimiser = torch.optim.AdamW(policy.parameters(), lr=0.1, fused=True)
        sum(output.square().mean() for output in policy(observations)).backward()
        optimiser.step()


def test_the_same_plans_give_the_same_episodes_and_other_seeds_others() -> None:
    """Acting is a function of actor and plans; nothing global is drawn from."""
    assert_identical(run(), run())
    others = rollout(
        actor_of(1.0),
        counters(2),
        [plan._replace(seed=plan.seed + 1000) for plan in plans_of([3, 9, 1, 4, 6])],
        Acting(max_steps=6),
        LABELS,
    )
    assert any(not np.array_equal(a.action_tokens, b.action_tokens) for a, b in zip(run(), others, strict=True))


def test_greedy_takes_the_likeliest_bin() -> None:
    """Every greedy token is the argmax of the logits (numpy's); its log_mu is still that of the distribution."""
    for episode in run(slope=2.0, greedy=True):
        logits, _ = actor_of(2.0)(episode.observations[:-1])
        np.testing.assert_array_equal(episode.action_tokens, logits.argmax(-1))
        np.testing.assert_allclose(episode.log_mu, log_softmax(logits, -1).max(-1), atol=1e-5)


def test_logits_are_left_out_when_they_are_not_wanted() -> None:
    """Evaluation keeps no logits, and acts no differently for it."""
    without = run(keep_logits=False)
    assert all(episode.mu_logits is None for episode in without)
    for left, right in zip(without, run(), strict=True):
        np.testing.assert_array_equal(left.action_tokens, right.action_tokens)


def test_plans_cycle_through_the_goals_with_draws_of_their_own() -> None:
    """Plan i stands on goal i modulo the suite's 50; a goal met twice is played with other draws."""
    suite = make_suite("gridworld", {})
    plans = goal_plans(suite, 5, 120, "evaluate")
    assert [plan.goal for plan in plans] == [(5, i % 50) for i in range(120)]
    assert len({plan.seed for plan in plans}) == 120
    assert plans == goal_plans(suite, 5, 120, "evaluate")
    assert {plan.seed for plan in goal_plans(suite, 5, 120, "other")}.isdisjoint(plan.seed for plan in plans)


def test_no_plans_are_no_episodes() -> None:
    """Nothing to do is not an error."""
    assert rollout(actor_of(1.0), counters(2), [], Acting(max_steps=3), LABELS) == []


def test_pieces_of_episodes_add_up_to_the_episodes() -> None:
    """Collected in calls of 4 steps, the pieces of each episode laid end to end are the episode acted out at once.

    A piece that ends before its episode does is truncated and bootstrapped with the value of its last observation.
    """
    lengths = [3, 9, 1, 4, 6, 2, 5]
    whole = run(lengths=lengths, environments=1, keep_logits=False)
    acting = Acting(max_steps=6, keep_logits=False)
    collector = Collector(counters(1), iter(plans_of(lengths)), acting, LABELS)
    calls = [collector.collect(actor_of(1.0), 4, version) for version in range(6)]
    assert [sum(piece.num_steps for piece in call) for call in calls] == [4] * 6
    pieces: dict[str, list[Episode]] = {}
    for version, call in enumerate(calls):
        for piece in call:
            check_episode(piece)
            assert piece.behaviour_version == version
            pieces.setdefault(piece.episode_id.rsplit("-", 1)[0], []).append(piece)
    for number, parts in enumerate(list(pieces.values())[:6]):
        episode = whole[number]
        for name in ("action_tokens", "log_mu", "reward", "value"):
            np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(episode, name))
        assert (parts[-1].terminated, parts[-1].truncated) == (episode.terminated, episode.truncated)
        for part in parts[:-1]:
            goal, steps, _ = part.observations[-1]
            assert part.truncated and part.bootstrap_value == goal - 10 * steps
    assert any(len(parts) > 1 for parts in pieces.values())
