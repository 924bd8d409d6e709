"""Measures a policy on fixed goals with common random numbers."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from replaybench.episode import Episode
from replaybench.policy import Policy
from replaybench.rollout import Acting, Labels, goal_plans, policy_actor, rollout
from replaybench.spec import EvaluateSettings
from replaybench.suites import Environment, Suite, make_suite

NUM_ENVIRONMENTS = 10


class World(NamedTuple):
    """A task that is ready to act in: its suite and a few simulator instances."""

    suite: Suite
    task: str
    environments: list[Environment]

    def labels(self, prefix: str, behaviour_version: int = 0) -> Labels:
        """Returns what is written on episodes made here."""
        return Labels(self.task, self.suite.instruction(self.task), self.suite.simulator, behaviour_version, prefix)


def open_world(suite: str, settings: Mapping[str, Any], task: str, collectors: int = 0) -> World:
    """Returns the world of a task; one process builds each only once, since simulators are slow to build.

    Args:
        collectors: Number of environments to collect in, which are none of those that evaluate; 0 for the latter.
    """
    return _open_world(suite, json.dumps(dict(settings), sort_keys=True), task, collectors)


@lru_cache(maxsize=4)
def _open_world(suite_name: str, settings_json: str, task: str, collectors: int) -> World:
    suite = make_suite(suite_name, json.loads(settings_json))
    # A suite whose simulators are large says how many there should be.
    count: int = collectors or getattr(suite, "num_environments", NUM_ENVIRONMENTS)
    return World(suite, task, [suite.make(task) for _ in range(count)])


class Outcome(NamedTuple):
    """Per evaluation episode: success, length in decisions and undiscounted return."""

    success: NDArray[np.float64]
    length: NDArray[np.float64]
    total_reward: NDArray[np.float64]


def evaluate(
    policy: Policy, world: World, settings: EvaluateSettings, device: torch.device, *, greedy: bool
) -> Outcome:
    """Runs the policy once on each planned goal; the same settings give every policy the same goals and draws."""
    plans = goal_plans(world.suite, settings.goal_seed, settings.episodes, "evaluate")
    acting = Acting(max_steps=settings.max_steps, greedy=greedy, keep_logits=False)
    episodes = rollout(policy_actor(policy, device), world.environments, plans, acting, world.labels("evaluate"))
    return outcome(episodes)


def outcome(episodes: list[Episode]) -> Outcome:
    """Summarises finished episodes."""
    return Outcome(
        success=np.array([episode.success for episode in episodes], dtype=np.float64),
        length=np.array([episode.num_steps for episode in episodes], dtype=np.float64),
        total_reward=np.array([episode.reward.sum() for episode in episodes], dtype=np.float64),
    )
