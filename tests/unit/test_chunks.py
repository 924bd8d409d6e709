"""Action chunks on a toy simulator: rewards, success within a chunk, and plans that look ahead."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from replaybench.errors import ConfigError
from replaybench.suites import Transition
from replaybench.suites.chunks import ChunkedEnvironment, checked_chunk_size

NUM_BINS = 5


class Walker:
    """Stands on a number; a step with tokens (a, b) adds a - b, pays the new number, and succeeds at 10."""

    def __init__(self) -> None:
        self.place = 0
        self.taken: list[list[int]] = []

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
        self.place = goal[1]
        return np.zeros(1)

    def step(self, action_tokens: NDArray[np.int16]) -> Transition:
        self.taken.append(action_tokens.tolist())
        self.place += int(action_tokens[0]) - int(action_tokens[1])
        return Transition(np.zeros(1), float(self.place), self.place >= 10, self.place >= 10)

    def expert(self) -> NDArray[np.float64]:
        """Goes up by the place it stands on, at most 4: from 1 to 2, 4, 8, 12."""
        distribution = np.full((2, NUM_BINS), 0.1)
        distribution[0, min(self.place, 4)] = distribution[1, 0] = 0.6
        return distribution

    def snapshot(self) -> int:
        return self.place

    def restore(self, snapshot: int) -> None:
        self.place = snapshot


def start(place: int, chunk_size: int = 3) -> tuple[Walker, ChunkedEnvironment]:
    """Returns a walker that stands on `place`, and its environment of chunks."""
    walker = Walker()
    environment = ChunkedEnvironment(walker, chunk_size, lambda: np.array([walker.place]))
    assert environment.reset((0, place), np.random.default_rng(0)).tolist() == [place]
    return walker, environment


def test_a_decision_takes_its_steps_in_order_and_pays_their_sum() -> None:
    """Tokens (1,0) (2,1) (4,0) from 1 lead to 2, 3, 7, which pays 12 (by hand)."""
    walker, environment = start(1)
    transition = environment.step(np.array([1, 0, 2, 1, 4, 0], np.int16))
    assert walker.taken == [[1, 0], [2, 1], [4, 0]]
    assert (transition.observation.tolist(), transition.reward, transition.terminated) == ([7], 12.0, False)


def test_success_ends_the_decision() -> None:
    """From 5 the second step reaches 12, which pays 8 + 12; the third is not taken."""
    walker, environment = start(5)
    transition = environment.step(np.array([3, 0, 4, 0, 0, 4], np.int16))
    assert len(walker.taken) == 2
    assert transition[1:] == (20.0, True, True)


def test_a_plan_is_what_the_expert_does_in_the_states_it_leads_to() -> None:
    """From 1 its likeliest tokens are 1, 2, 4; planning leaves the walker where it was."""
    walker, environment = start(1)
    plan = environment.expert()
    assert plan.shape == (6, NUM_BINS)
    assert plan.argmax(1).tolist() == [1, 0, 2, 0, 4, 0]
    assert walker.place == 1
    assert environment.step(plan.argmax(1).astype(np.int16)).observation.tolist() == [8]


def test_a_plan_goes_on_after_success() -> None:
    """A plan is as long as a decision, also where its first steps reach the end."""
    _, environment = start(9)
    assert environment.expert().argmax(1).tolist() == [4, 0, 4, 0, 4, 0]


def test_a_chunk_has_steps() -> None:
    """A chunk of no steps is refused, one of one step is not."""
    assert checked_chunk_size(1) == 1
    with pytest.raises(ConfigError, match="chunk_size is 0"):
        checked_chunk_size(0)
