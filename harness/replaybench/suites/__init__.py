"""The suite contract: tasks, goals, environments that take action tokens, and a scripted expert."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from replaybench.plugins import load_object, settings_of

ENTRY_POINT_GROUP = "replaybench.suites"
BUILT_IN = {
    "gridworld": "replaybench.suites.gridworld:GridWorldSuite",
    "metaworld": "replaybench.suites.metaworld:MetaWorldSuite",
    "metaworld-pixels": "replaybench.suites.metaworld_pixels:MetaWorldPixelsSuite",
    "libero": "replaybench.suites.libero:LiberoSuite",
}


class Transition(NamedTuple):
    """What follows a decision. `terminated` is set at success; a time limit is the caller's business."""

    observation: NDArray[np.generic]
    reward: float
    terminated: bool
    success: bool


class Environment(Protocol):
    """One simulator instance of one task, acted on with action tokens (bins).

    An observation is a float32 state or a uint8 image [H, W, 3 x cameras]. Where a decision is a chunk of steps,
    `step` takes all of them and `expert` plans all of them.
    """

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[np.generic]:
        """Starts an episode at goal (goal seed, index); `rng` drives stochastic dynamics, if any."""
        ...

    def step(self, action_tokens: NDArray[np.int16]) -> Transition:
        """Acts with one bin for each of the A action tokens."""
        ...

    def expert(self) -> NDArray[np.float64]:
        """Returns the scripted expert's distribution over bins in the present state, [A, K]."""
        ...


class Suite(Protocol):
    """A family of tasks. Constructed with the settings of a recipe's [suite] table.

    `simulator` is the name and version of what computes the dynamics; `num_goals` goals exist for every
    goal seed; `policy_settings` are the sizes that a policy for the task needs.
    """

    simulator: str
    num_goals: int

    def tasks(self) -> list[str]: ...
    def instruction(self, task: str) -> str: ...
    def policy_settings(self, task: str) -> dict[str, Any]: ...
    def make(self, task: str) -> Environment: ...


@runtime_checkable
class CheckedSuite(Protocol):
    """A suite that is slow to make environments of, and so can say beforehand that a task has none."""

    def check(self, task: str) -> None: ...


def make_suite(kind: str, settings: Mapping[str, Any]) -> Suite:
    """Builds a suite: a built-in name, an entry point in `replaybench.suites`, or `module:Class`.

    Raises:
        ConfigError: The kind is unknown or does not take these settings.
    """
    factory = load_object("suite", kind, BUILT_IN, ENTRY_POINT_GROUP)
    with settings_of("suite", kind, factory, settings):
        suite: Suite = factory(**settings)
    return suite
