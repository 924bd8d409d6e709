"""The frozen records that travel between modules: logged episodes and training batches.

Shape letters: T decisions of an episode, A action tokens of a decision, K bins of a token,
B decisions of a batch, D numbers of an observation.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One logged episode, with everything an off-policy correction may need.

    Args:
        observations: [T+1, ...] float32 states or uint8 images; the last row follows the last action.
        action_tokens: [T, A] int16, the bin that was chosen for each action token.
        log_mu: [T, A] float32, natural log-probability of that bin under the behaviour policy.
        mu_logits: [T, A, K] float16 logits of the behaviour policy, or None.
        reward: [T] float32.
        value: [T] float32, the behaviour policy's own value estimate.
        terminated: The task ended (success or failure); nothing follows the last state.
        truncated: A time limit cut the episode; the last state's value must be bootstrapped.
        bootstrap_value: The behaviour policy's value of the last observation (0 if terminated).
        behaviour_version: Optimiser steps that had changed the policy that acted.
        task: Task name in its suite.
        instruction: What the robot was told to do, in words.
        seed: Seed of the action sampling.
        success: Whether the suite's success condition was met.
        simulator: Name and version of the simulator.
        episode_id: Unique in its data set.
    """

    observations: NDArray[np.generic]
    action_tokens: NDArray[np.int16]
    log_mu: NDArray[np.float32]
    reward: NDArray[np.float32]
    value: NDArray[np.float32]
    terminated: bool
    truncated: bool
    bootstrap_value: float
    behaviour_version: int
    task: str
    instruction: str
    seed: int
    success: bool
    simulator: str
    episode_id: str
    mu_logits: NDArray[np.float16] | None = None

    @property
    def num_steps(self) -> int:
        """Number of decisions T."""
        return len(self.reward)


STEP_COLUMNS = {
    "action_tokens": np.int16,
    "log_mu": np.float32,
    "reward": np.float32,
    "value": np.float32,
}


def check_episode(episode: Episode) -> None:
    """Refuses an episode whose arrays disagree or cannot be learned from.

    Raises:
        DataError: Names the episode, the field and what to do.
    """
    where = f"episode '{episode.episode_id}'"
    if episode.log_mu is None:
        raise DataError(
            f"{where}: log_mu is missing. Log the behaviour policy's log-probability of each action token "
            "when acting; it cannot be recomputed afterwards with another policy."
        )
    steps = episode.num_steps
    if steps == 0:
        raise DataError(f"{where}: has no steps. Leave empty episodes out.")
    if episode.terminated == episode.truncated:
        raise DataError(f"{where}: exactly one of terminated and truncated must be true.")
    _check_shape(where, "observations", len(episode.observations), steps + 1)
    for name, dtype in STEP_COLUMNS.items():
        column = getattr(episode, name)
        _check_shape(where, name, len(column), steps)
        if column.dtype != dtype:
            raise DataError(f"{where}: {name} is {column.dtype}, expected {np.dtype(dtype)}.")
    if episode.action_tokens.shape != episode.log_mu.shape or episode.log_mu.ndim != 2:
        raise DataError(
            f"{where}: action_tokens {episode.action_tokens.shape} and log_mu {episode.log_mu.shape} "
            "must both be [T, A]."
        )
    if episode.mu_logits is not None and episode.mu_logits.shape[:2] != episode.log_mu.shape:
        raise DataError(f"{where}: mu_logits {episode.mu_logits.shape} must be [T, A, K].")
    for field in fields(episode):
        column = getattr(episode, field.name)
        if isinstance(column, np.ndarray) and column.dtype.kind == "f" and not np.isfinite(column).all():
            step = int(np.argwhere(~np.isfinite(column))[0][0])
            raise DataError(f"{where}: {field.name} is not finite at step {step}. Drop or repair the episode.")
    if not np.isfinite(episode.bootstrap_value):
        raise DataError(f"{where}: bootstrap_value is not finite. Drop or repair the episode.")
    if (episode.log_mu > 1e-4).any():
        raise DataError(f"{where}: log_mu has positive values; expected natural logs of probabilities of bins.")
    if (episode.action_tokens < 0).any():
        raise DataError(f"{where}: action_tokens has negative bins.")


def _check_shape(where: str, name: str, rows: int, expected: int) -> None:
    if rows != expected:
        raise DataError(f"{where}: {name} has {rows} rows, expected {expected} (T+1 observations, T of the rest).")
