"""Packs logged episodes into contiguous columns to learn from.

Episodes lie end to end: N decisions and N+E observations (each episode has one more than decisions).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaybench.column import Column, make_column
from replaybench.episode import Episode
from replaybench.errors import DataError
from replaybench.estimators import NEEDS


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """N logged decisions, column by column.

    Args:
        observations: [N+E, ...] all observations.
        row: [N] index of a decision's observation; row + 1 is the one that follows it.
        action_tokens: [N, A]. log_mu: [N, A]. mu_logits: [N, A, K] or None.
        reward, value, next_value: [N] float64, as logged; next_value is 0 after a terminal decision.
        ends: [N] bool, last decision of its episode. terminal: [N] bool, nothing follows.
        behaviour_version: [N]. task: [E] name of each episode's task.
    """

    observations: Column
    row: Tensor
    action_tokens: Tensor
    log_mu: Tensor
    mu_logits: Column | None
    reward: NDArray[np.float64]
    value: NDArray[np.float64]
    next_value: NDArray[np.float64]
    ends: NDArray[np.bool_]
    terminal: NDArray[np.bool_]
    behaviour_version: NDArray[np.int64]
    task: Sequence[str]

    @property
    def num_steps(self) -> int:
        """Number of logged decisions N."""
        return len(self.reward)

    @property
    def episode(self) -> Tensor:
        """Number of the episode of each decision, [N]."""
        return self.row - torch.arange(self.num_steps, device=self.row.device)


def take_steps(episodes: Sequence[Episode], num_steps: int) -> list[Episode]:
    """Returns the first episodes that hold exactly `num_steps` decisions; the last one may be cut.

    A cut episode counts as truncated, so its last value is bootstrapped.

    Raises:
        DataError: The log is shorter than that.
    """
    taken: list[Episode] = []
    missing = num_steps
    for episode in episodes:
        if missing == 0:
            break
        taken.append(episode if episode.num_steps <= missing else _cut(episode, missing))
        missing -= taken[-1].num_steps
    if missing:
        raise DataError(
            f"The log holds {num_steps - missing} steps, this replay ratio needs {num_steps}. "
            "Log more episodes, raise the replay ratio, or lower updates or batch_size."
        )
    return taken


def _cut(episode: Episode, steps: int) -> Episode:
    return replace(
        _rows(episode, slice(0, steps)),
        terminated=False,
        truncated=True,
        success=False,
        bootstrap_value=float(episode.value[steps]),
    )


def without_first(episode: Episode, steps: int) -> Episode:
    """Returns the episode without its first `steps` decisions."""
    return _rows(episode, slice(steps, episode.num_steps))


def _rows(episode: Episode, kept: slice) -> Episode:
    return replace(
        episode,
        observations=episode.observations[kept.start : kept.stop + 1],
        action_tokens=episode.action_tokens[kept],
        log_mu=episode.log_mu[kept],
        mu_logits=None if episode.mu_logits is None else episode.mu_logits[kept],
        reward=episode.reward[kept],
        value=episode.value[kept],
    )


def pack(episodes: Collection[Episode], device: torch.device) -> Replay:
    """Concatenates episodes; mu_logits are kept only if every episode has them."""
    if not episodes:
        raise DataError("There are no episodes to learn from.")
    lengths = np.array([episode.num_steps for episode in episodes])
    ends = np.zeros(lengths.sum(), dtype=bool)
    ends[lengths.cumsum() - 1] = True
    row = np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)), lengths)

    def column(name: str) -> Column:
        return make_column([getattr(episode, name) for episode in episodes], device)

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(episode, name) for episode in episodes])

    value = joined("value").astype(np.float64)
    next_value = np.append(value[1:], 0.0)
    next_value[ends] = [0.0 if episode.terminated else episode.bootstrap_value for episode in episodes]
    terminal = np.zeros_like(ends)
    terminal[ends] = [episode.terminated for episode in episodes]
    has_logits = all(episode.mu_logits is not None for episode in episodes)
    return Replay(
        observations=column("observations"),
        row=torch.from_numpy(row).to(device),
        action_tokens=torch.from_numpy(joined("action_tokens")).to(device),
        log_mu=torch.from_numpy(joined("log_mu")).to(device),
        mu_logits=column("mu_logits") if has_logits else None,
        reward=joined("reward").astype(np.float64),
        value=value,
        next_value=next_value,
        ends=ends,
        terminal=terminal,
        behaviour_version=np.repeat([episode.behaviour_version for episode in episodes], lengths),
        task=[episode.task for episode in episodes],
    )


def comparable_episodes(replay: Replay) -> NDArray[np.int64]:
    """Returns for each episode the number of its group, [E]: the episodes of one task and one behaviour version.

    Raises:
        DataError: A group has one episode, which nothing can be compared with.
    """
    numbers: dict[tuple[str, int], int] = {}
    keys = list(zip(replay.task, replay.behaviour_version[replay.ends].tolist(), strict=True))
    group = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    for key, size in zip(numbers, np.bincount(group), strict=True):
        if size == 1:
            raise DataError(
                f"Task '{key[0]}', behaviour version {key[1]} has one episode in this replay, and group-relative "
                f"advantages compare episodes of one task and one version: {NEEDS['groups']}; or choose another "
                "estimator."
            )
    return group


def starts_pass(used: int, batch_size: int, num_steps: int) -> bool:
    """Returns whether a batch drawn after `used` decisions holds the first decision of a pass over `num_steps`."""
    next_pass = -(-used // num_steps) * num_steps
    return next_pass < used + batch_size


def minibatches(num_steps: int, batch_size: int, updates: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yields `updates` index batches from shuffled passes over the log, each pass without replacement.

    Over updates * batch_size = R * num_steps draws every decision is used exactly R times.
    """
    order = np.empty(0, dtype=np.int64)
    for _ in range(updates):
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(num_steps)])
        yield torch.from_numpy(order[:batch_size].copy())
        order = order[batch_size:]


def weighted_minibatches(weight: Tensor, batch_size: int, updates: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yields index batches drawn with replacement with probability proportional to `weight`, [N]."""
    cumulative = weight.double().cpu().numpy().cumsum()
    for _ in range(updates):
        draws = np.searchsorted(cumulative, rng.random(batch_size) * cumulative[-1], side="right")
        yield torch.from_numpy(np.minimum(draws, len(cumulative) - 1))


def episode_minibatches(
    ends: NDArray[np.bool_], batch_size: int, updates: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yields batches of whole episodes, in order, each the first to hold at least `batch_size` decisions.

    Episodes come from shuffled passes over the log, each pass without replacement.
    """
    last = np.flatnonzero(ends)
    first = np.append(0, last[:-1] + 1)
    waiting: list[int] = []
    for _ in range(updates):
        chosen: list[NDArray[np.int64]] = []
        while sum(map(len, chosen)) < batch_size:
            if not waiting:
                waiting = rng.permutation(len(last)).tolist()
            episode = waiting.pop()
            chosen.append(np.arange(first[episode], last[episode] + 1))
        yield torch.from_numpy(np.concatenate(chosen))
