"""The Meta-World suite against the simulator itself: goals, reproducibility, rewards, the scripted expert."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from replaybench.errors import ConfigError
from replaybench.policy import make_policy
from replaybench.rollout import Acting, Actor, Labels, goal_plans, policy_actor, rollout
from replaybench.seeding import torch_generator
from replaybench.store.layout import episode_digest
from replaybench.suites.metaworld import MetaWorldEnvironment, MetaWorldSuite

TASK = "button-press-topdown-v3"
slow = pytest.mark.slow


def play(actor: Actor, environments: int) -> list[str]:
    """Digests of short episodes on six goals, in simulators made for them."""
    suite = MetaWorldSuite(num_bins=32)
    labels = Labels(TASK, suite.instruction(TASK), suite.simulator, 0, "log")
    made = [suite.make(TASK) for _ in range(environments)]
    episodes = rollout(actor, made, goal_plans(suite, 1, 6, "test"), Acting(max_steps=25), labels)
    return [episode_digest(episode) for episode in episodes]


def uniform(observations: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Acts uniformly at random."""
    return np.zeros((len(observations), 4, 32), np.float32), np.zeros(len(observations), np.float32)


def follow_expert(environment: MetaWorldEnvironment, goal: tuple[int, int], steps: int) -> tuple[bool, list[float]]:
    """Takes the expert's likeliest bins; returns success and rewards."""
    environment.reset(goal, np.random.default_rng(0))
    rewards = []
    for _ in range(steps):
        transition = environment.step(environment.expert().argmax(-1).astype(np.int16))
        rewards.append(transition.reward)
        assert transition.terminated == transition.success
        if transition.terminated:
            return True, rewards
    return False, rewards


@slow
def test_goals_of_different_seeds_are_disjoint() -> None:
    """Training, stop rule and evaluation use other seeds; no first observation, hence no goal, is in two of them."""
    environment = MetaWorldSuite(num_bins=32).make(TASK)
    rng = np.random.default_rng(0)
    goals = {
        seed: {environment.reset((seed, index), rng).tobytes() for index in range(MetaWorldSuite.num_goals)}
        for seed in (555, 777, 10_000, 10_001)
    }
    assert all(len(found) == 50 for found in goals.values())
    assert len(set().union(*goals.values())) == 200


@slow
def test_the_same_plans_give_the_same_bytes() -> None:
    """A policy in new simulators logs byte-identical episodes, a different one on each goal."""
    sizes = MetaWorldSuite(num_bins=32).policy_settings(TASK) | {"hidden": 16, "value_hidden": 8}
    actor = policy_actor(make_policy("mlp", sizes, torch_generator("x")), torch.device("cpu"))
    first = play(actor, 2)
    assert play(actor, 2) == first
    assert len(set(first)) == 6


@slow
def test_a_reset_forgets_the_episode_before() -> None:
    """Six episodes in one simulator, one after another, are those of six simulators, byte by byte.

    Actions do not depend on the observations here: a network's rounding varies with the number of rows.
    """
    assert play(uniform, 1) == play(uniform, 6)


@slow
def test_the_expert_succeeds_and_is_paid_for_it() -> None:
    """The scripted expert presses the button on 10 of 10 goals; under "success" only the last step pays, 1."""
    environment = MetaWorldSuite(num_bins=32, reward="success").make(TASK)
    for index in range(10):
        succeeded, rewards = follow_expert(environment, (777, index), 150)
        assert succeeded
        assert rewards == [0.0] * (len(rewards) - 1) + [1.0]


@slow
def test_progress_telescopes_and_dense_adds_the_shaped_reward() -> None:
    """On one goal and the same actions, "dense" less "success" is 0.001 x the simulator's own reward.

    The sum of "progress" is success plus 0.1 x (last - first) shaped reward, by telescoping.
    """
    sums = {}
    shaped: list[float] = []
    for kind in ("success", "dense", "progress"):
        environment = MetaWorldSuite(num_bins=32, reward=kind).make(TASK)
        step = environment._env.step
        shaped.clear()

        def spying(action: Any, step: Any = step) -> Any:
            result = step(action)
            shaped.append(float(result[1]))
            return result

        environment._env.step = spying
        _, rewards = follow_expert(environment, (3, 4), 60)
        sums[kind] = sum(rewards)
        first = environment.reset((3, 4), np.random.default_rng(0))
        start, _ = environment._env.evaluate_state(first.astype(np.float64), np.zeros(4, dtype=np.float32))
    assert sums["dense"] - sums["success"] == pytest.approx(0.001 * sum(shaped))
    assert sums["progress"] - sums["success"] == pytest.approx(0.1 * (shaped[-1] - float(start)), abs=1e-4)


@slow
def test_tokens_act_with_their_bins_centre() -> None:
    """With 4 bins the first token of each dimension acts with -3/4, the last with 3/4 (by hand)."""
    environment = MetaWorldSuite(num_bins=4).make(TASK)
    environment.reset((0, 0), np.random.default_rng(0))
    actions = []
    step = environment._env.step
    environment._env.step = lambda action: (actions.append(action.tolist()), step(action))[1]
    environment.step(np.array([0, 1, 2, 3], np.int16))
    assert actions == [[-0.75, -0.25, 0.25, 0.75]]


@slow
def test_the_experts_distribution_covers_every_bin_with_its_width() -> None:
    """Rows are distributions over the bins; a wider expert is less sure."""
    sure = {}
    for width in (0.1, 1.0):
        environment = MetaWorldSuite(num_bins=32, expert_width=width).make(TASK)
        environment.reset((0, 0), np.random.default_rng(0))
        distribution = environment.expert()
        assert distribution.shape == (4, 32)
        np.testing.assert_allclose(distribution.sum(1), 1.0)
        sure[width] = distribution.max(1)
    assert (sure[0.1] > sure[1.0]).all()


@slow
def test_an_unknown_task_gets_the_nearest() -> None:
    """There are 50 tasks, and a misspelt one is answered with the one that was meant."""
    suite = MetaWorldSuite()
    assert len(suite.tasks()) == 50
    with pytest.raises(ConfigError, match="Unknown Meta-World task 'button-pres-v3'. Did you mean 'button-press-v3'"):
        suite.make("button-pres-v3")


def test_an_unknown_reward_gets_the_nearest() -> None:
    """Without a simulator."""
    with pytest.raises(ConfigError, match="Did you mean 'progress'"):
        MetaWorldSuite(reward="progres")


def test_an_instruction_is_the_task_in_words() -> None:
    """The version is no part of what the robot is told; sizes and versions are what the policy and the card need."""
    suite = MetaWorldSuite(num_bins=32)
    assert suite.instruction("button-press-topdown-v3") == "button press topdown"
    assert suite.policy_settings(TASK) == {"observation_size": 39, "num_action_tokens": 4, "num_bins": 32}
    assert "metaworld 3.1.1" in suite.simulator
    assert "mujoco 3.3.0" in suite.simulator
