"""Action chunks: one decision is several simulator steps, and what is observed is observed once a decision.

Shape letters: S simulator steps of a decision, D action dimensions, K bins; a decision has A = S x D tokens,
those of the first step first.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ConfigError
from replaybench.suites import Transition


class Simulator(Protocol):
    """An environment of single steps that can be put back to where it was."""

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]: ...
    def step(self, action_tokens: NDArray[np.int16]) -> Transition: ...
    def expert(self) -> NDArray[np.float64]: ...
    def snapshot(self) -> Any: ...
    def restore(self, snapshot: Any) -> None: ...


class ChunkedEnvironment:
    """Acts with S steps at a time; the reward of a decision is the sum over its steps, undiscounted.

    Success ends the decision: the tokens of the steps after it are not acted on.

    Args:
        simulator: Takes the single steps.
        chunk_size: S.
        observe: Returns the observation of the present state.
    """

    def __init__(self, simulator: Simulator, chunk_size: int, observe: Callable[[], NDArray[Any]]) -> None:
        self._simulator = simulator
        self._chunk_size = chunk_size
        self._observe = observe

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
        self._simulator.reset(goal, rng)
        return self._observe()

    def step(self, action_tokens: NDArray[np.int16]) -> Transition:
        reward = 0.0
        for tokens in action_tokens.reshape(self._chunk_size, -1):
            taken = self._simulator.step(tokens)
            reward += taken.reward
            if taken.terminated:
                break
        return Transition(self._observe(), reward, taken.terminated, taken.success)

    def expert(self) -> NDArray[np.float64]:
        """Returns the expert's plan [A, K]: what it would do in the S states that its likeliest actions lead to.

        The plan is made by acting it out and putting the simulator back.
        """
        before = self._simulator.snapshot()
        plan = []
        for _ in range(self._chunk_size):
            plan.append(self._simulator.expert())
            self._simulator.step(plan[-1].argmax(-1).astype(np.int16))
        self._simulator.restore(before)
        return np.concatenate(plan)


def checked_chunk_size(chunk_size: int) -> int:
    """Refuses a chunk without steps."""
    if chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}, expected simulator steps of a decision, 1 or more.")
    return chunk_size
