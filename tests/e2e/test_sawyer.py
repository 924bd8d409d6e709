"""The faster Meta-World simulator against the untouched one."""

import warnings
from typing import Any

import numpy as np
import pytest

from replaybench.suites.sawyer import HandStates, without_repeated_work

gymnasium = pytest.importorskip("gymnasium")
metaworld = pytest.importorskip("metaworld")

from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402  needs the line above

# (goal, instance): goals that come back, also in another instance than the one that saw them first.
EPISODES = [(0, 0), (1, 0), (0, 0), (1, 1), (2, 1), (0, 1)]


def make(task: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make("Meta-World/MT1", env_name=task, seed=0, disable_env_checker=True).unwrapped


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(ALL_V3_ENVIRONMENTS))
def test_every_task_keeps_every_bit(task: str) -> None:
    """Resets, observations, rewards and every entry of `info` equal the untouched simulator's, over random actions."""
    hand_states: HandStates = {}
    untouched = [make(task), make(task)]
    faster = [without_repeated_work(make(task), hand_states) for _ in range(2)]
    goals = metaworld.MT1(task, seed=3).train_tasks[:3]
    for episode, (goal, instance) in enumerate(EPISODES):
        rng = np.random.default_rng(episode)
        pair = (untouched[instance], faster[instance])
        for environment in pair:
            environment.set_task(goals[goal])
        expected, observed = (environment.reset()[0] for environment in pair)
        np.testing.assert_array_equal(observed, expected)
        for _ in range(12):
            action = rng.uniform(-1, 1, 4).astype(np.float32)
            expected_step, observed_step = (environment.step(action) for environment in pair)
            np.testing.assert_array_equal(observed_step[0], expected_step[0])
            assert observed_step[1] == expected_step[1]
            assert {k: float(v) for k, v in observed_step[4].items()} == {
                k: float(v) for k, v in expected_step[4].items()
            }
    assert len(hand_states) == 3
