"""The buffer against a slow twin: a bounded queue of single transitions."""

from collections import deque

import numpy as np
import torch

from replaybench.buffer import Buffer
from replaybench.episode import Episode
from replaybench.replay import Replay


def piece(number: int, steps: int, *, is_terminated: bool) -> Episode:
    """A piece whose every number says where it comes from."""
    first = 10.0 * number
    return Episode(
        observations=(first + np.arange(steps + 1, dtype=np.float32))[:, None],
        action_tokens=np.full((steps, 1), number, np.int16),
        log_mu=np.full((steps, 1), -0.01 * number, np.float32),
        mu_logits=(first + np.arange(steps, dtype=np.float16))[:, None, None],
        reward=(first + np.arange(steps)).astype(np.float32),
        value=(first + 0.5 + np.arange(steps)).astype(np.float32),
        terminated=is_terminated,
        truncated=not is_terminated,
        bootstrap_value=0.0 if is_terminated else 7.0,
        behaviour_version=number,
        task="t",
        instruction="",
        seed=0,
        success=False,
        simulator="s",
        episode_id=str(number),
    )


def transitions(replay: Replay) -> list[tuple[float, ...]]:
    """Every decision of a replay with what surrounds it."""
    assert replay.mu_logits is not None
    columns = (
        replay.observations[replay.row, 0].tolist(),
        replay.observations[replay.row + 1, 0].tolist(),
        replay.action_tokens[:, 0].tolist(),
        replay.mu_logits[:, 0, 0].tolist(),
        replay.reward.tolist(),
        replay.value.tolist(),
        replay.next_value.tolist(),
        replay.behaviour_version.tolist(),
        replay.ends.tolist(),
        replay.terminal.tolist(),
    )
    return list(zip(*columns, strict=True))


def test_the_buffer_holds_what_a_bounded_queue_of_transitions_holds() -> None:
    """After every addition of random pieces each decision, its neighbours and its marks are those of the slow twin."""
    rng = np.random.default_rng(3)
    buffer, twin = Buffer(37), deque[tuple[float, ...]](maxlen=37)
    for number in range(1, 60):
        steps = int(rng.integers(1, 12)) if number % 20 else 45
        added = piece(number, steps, is_terminated=bool(rng.integers(2)))
        buffer.add([added])
        for t in range(steps):
            last = t == steps - 1
            following = added.bootstrap_value if last else added.value[t + 1]
            state = 10.0 * number + t
            marks = (number, last, last and added.terminated)
            twin.append((state, state + 1, number, state, state, state + 0.5, following, *marks))
        assert buffer.num_steps == len(twin)
        assert transitions(buffer.replay(torch.device("cpu"))) == list(twin)


def test_pieces_of_one_addition_may_exceed_the_capacity() -> None:
    """Only the newest decisions of a large addition stay."""
    buffer = Buffer(5)
    buffer.add([piece(1, 3, is_terminated=True), piece(2, 4, is_terminated=False)])
    assert [row[4] for row in transitions(buffer.replay(torch.device("cpu")))] == [12.0, 20.0, 21.0, 22.0, 23.0]
