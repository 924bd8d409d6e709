"""Meta-World v3 tasks through the gymnasium API, with state observations and 4 binned action dimensions."""

import importlib.metadata
import warnings
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import unknown_name
from replaybench.suites import Transition
from replaybench.suites.binning import bin_centres, gaussian_over_bins
from replaybench.suites.sawyer import HandStates, without_repeated_work
from replaybench.suites.snapshots import Snapshot, restore_snapshot, take_snapshot

NUM_ACTION_TOKENS = 4
OBSERVATION_SIZE = 39
GOALS_PER_SEED = 50
REWARDS = ("success", "dense", "progress")
DENSE_SCALE = 0.001
PROGRESS_SCALE = 0.1


class MetaWorldSuite:
    """The 50 single-task environments `<name>-v3` of Meta-World.

    Args:
        num_bins: K equal bins on [-1, 1] of each action dimension; a token acts with its bin's centre.
        reward: "success" pays 1 at success and 0 before; "dense" adds the simulator's shaped reward x 0.001 (the
            paper's scale); "progress" adds 0.1 x the change of the shaped reward, which telescopes over an episode
            and so pays for where it ends, not for lingering.
        expert_width: Standard deviation, in action units, of the Gaussian over bins around the expert's action.
    """

    num_goals = GOALS_PER_SEED

    def __init__(self, *, num_bins: int = 256, reward: str = "progress", expert_width: float = 0.5) -> None:
        if reward not in REWARDS:
            raise unknown_name("Meta-World reward", reward, REWARDS)
        self.num_bins = num_bins
        self.reward = reward
        self.expert_width = expert_width
        self.simulator = f"metaworld {_version('metaworld')}, mujoco {_version('mujoco')}"

    def tasks(self) -> list[str]:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        return sorted(ALL_V3_ENVIRONMENTS)

    def instruction(self, task: str) -> str:
        return task.removesuffix("-v3").replace("-", " ")

    def policy_settings(self, task: str) -> dict[str, Any]:
        return {
            "observation_size": OBSERVATION_SIZE,
            "num_action_tokens": NUM_ACTION_TOKENS,
            "num_bins": self.num_bins,
        }

    def make(self, task: str) -> "MetaWorldEnvironment":
        if task not in self.tasks():
            raise unknown_name("Meta-World task", task, self.tasks())
        return MetaWorldEnvironment(task, self)


class MetaWorldEnvironment:
    """One simulator instance: the gymnasium environment of the task without the wrappers that `gymnasium.make` adds.

    The wrappers draw goals and check every step, which costs more than the policy.
    """

    def __init__(self, task: str, suite: MetaWorldSuite) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        self._env: Any = without_repeated_work(ALL_V3_ENVIRONMENTS[task](), _hand_states(task))
        self._task = task
        self._suite = suite
        experts: dict[str, Any] = dict(ENV_POLICY_MAP)
        self._expert = experts[task]()
        self._centres = bin_centres(suite.num_bins)
        self._observation: NDArray[np.float64] = np.zeros(OBSERVATION_SIZE)
        self._shaped = 0.0

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
        seed, index = goal
        self._env.set_task(_goals(self._task, seed)[index])
        self._observation, _ = self._env.reset()
        self._shaped = self._shaped_now()
        return self._observation.astype(np.float32)

    def step(self, action_tokens: NDArray[np.int16]) -> Transition:
        action = self._centres[action_tokens].astype(np.float32)
        self._observation, shaped, _, _, info = self._env.step(action)
        success = bool(info["success"])
        reward = float(success)
        if self._suite.reward == "dense":
            reward += DENSE_SCALE * float(shaped)
        elif self._suite.reward == "progress":
            reward += PROGRESS_SCALE * (float(shaped) - self._shaped)
            self._shaped = float(shaped)
        return Transition(self._observation.astype(np.float32), reward, success, success)

    @property
    def simulator(self) -> Any:
        """Meta-World's own environment below gymnasium's wrappers."""
        return self._env

    def _shaped_now(self) -> float:
        """Returns the shaped reward of the present state under no motion, where progress starts from."""
        reward, _ = self._env.evaluate_state(self._observation, np.zeros(NUM_ACTION_TOKENS, dtype=np.float32))
        return float(reward)

    def expert(self) -> NDArray[np.float64]:
        with warnings.catch_warnings():
            # The scripted experts ask for more than the actuators give and warn at every such step.
            warnings.simplefilter("ignore")
            action = np.clip(self._expert.get_action(self._observation), -1.0, 1.0)
        return gaussian_over_bins(np.asarray(action), self._centres, self._suite.expert_width)

    def snapshot(self) -> Snapshot:
        """Returns all that the following steps depend on."""
        return take_snapshot(self._env.model, self._env.data, [self, self._env])

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot of this instance, exactly."""
        restore_snapshot(self._env.model, self._env.data, [self, self._env], snapshot)


@lru_cache(maxsize=64)
def _goals(task: str, seed: int) -> list[Any]:
    """Returns the 50 goals that Meta-World draws for a seed."""
    import metaworld

    tasks: list[Any] = metaworld.MT1(task, seed=seed).train_tasks
    return tasks


@cache
def _hand_states(task: str) -> HandStates:
    """Returns what the simulators of a task in this process remember of their resets."""
    return {}


def _version(package: str) -> str:
    return importlib.metadata.version(package)
