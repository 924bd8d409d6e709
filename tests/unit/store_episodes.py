"""Small episodes, cards and log folders for the tests of the store."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replaybench.episode import Episode
from replaybench.store import Card, LevelCard, ShardWriter

NUM_BINS = 5
NUM_TOKENS = 3


def make_episode(episode_id: str, num_steps: int = 4, **changes: Any) -> Episode:
    """Returns an episode of random numbers that its id fixes; `changes` replace fields."""
    rng = np.random.default_rng([*episode_id.encode(), num_steps])
    terminated = bool(rng.integers(2))
    values: dict[str, Any] = {
        "observations": rng.normal(size=(num_steps + 1, 2)).astype(np.float32),
        "action_tokens": rng.integers(0, NUM_BINS, (num_steps, NUM_TOKENS)).astype(np.int16),
        "log_mu": -rng.exponential(size=(num_steps, NUM_TOKENS)).astype(np.float32),
        "mu_logits": rng.normal(size=(num_steps, NUM_TOKENS, NUM_BINS)).astype(np.float16),
        "reward": rng.normal(size=num_steps).astype(np.float32),
        "value": rng.normal(size=num_steps).astype(np.float32),
        "terminated": terminated,
        "truncated": not terminated,
        "bootstrap_value": 0.0 if terminated else float(rng.normal()),
        "behaviour_version": int(rng.integers(100)),
        "task": "push-v3",
        "instruction": "schiebe den Würfel 🟥",
        "seed": int(rng.integers(2**63 - 1)),
        "success": bool(rng.integers(2)),
        "simulator": "toy 1.0",
        "episode_id": episode_id,
    }
    return Episode(**values | changes)


def image_episode(episode_id: str, num_steps: int = 2) -> Episode:
    """Returns an episode of uint8 images, 4 x 3 x 2, without logits."""
    rng = np.random.default_rng(num_steps)
    images = rng.integers(0, 256, (num_steps + 1, 4, 3, 2)).astype(np.uint8)
    return make_episode(episode_id, num_steps, observations=images, mu_logits=None)


def make_card(**changes: Any) -> Card:
    """Returns a card without files, with the levels `fresh` and `stale`."""
    values: dict[str, Any] = {
        "dataset": "toy",
        "lineage": 0,
        "suite": "toy",
        "suite_settings": {"size": 3, "slip": 0.1, "goals": [[0, 1], [2, 2]], "noisy": False, "start": {"x": 1}},
        "task": "push-v3",
        "policy": "mlp",
        "policy_settings": {"hidden": 8},
        "start_checkpoint": "start",
        "recipe_sha256": "a" * 64,
        "licence": "CC-BY-4.0",
        "command": 'replaybench data make "toy"',
        "versions": {"torch": "2.6", "python.org/3": "3.11"},
        "levels": {"fresh": LevelCard(lag_updates=(0, 0)), "stale": LevelCard(branch_updates=40)},
    }
    return Card(**values | changes)


def weights() -> dict[str, torch.Tensor]:
    """Returns a small state dict with two tied tensors, one of them transposed."""
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return {"layer.weight": weight, "tied.weight": weight.T, "steps": torch.tensor(7)}


def logged_episodes(level: str) -> list[Episode]:
    """Returns the episodes that `write_log` writes in a level; one of them has one step."""
    return [make_episode(f"{level}-{index}", num_steps) for index, num_steps in enumerate((4, 1, 7, 2, 3))]


def write_log(folder: Path, **settings: Any) -> Path:
    """Writes a complete log folder, two episodes a shard unless `settings` say otherwise."""
    with ShardWriter(folder, card=make_card(), **{"episodes_per_shard": 2} | settings) as writer:
        writer.add_checkpoint("start", 120, weights())
        for level in ("fresh", "stale"):
            for episode in logged_episodes(level):
                writer.add(level, episode)
    return folder


def assert_same(found: list[Episode], expected: list[Episode]) -> None:
    """Compares field by field, types and array types included."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field in fields(Episode):
            left, right = getattr(one, field.name), getattr(other, field.name)
            assert type(left) is type(right), field.name
            if isinstance(right, np.ndarray):
                assert left.dtype == right.dtype, field.name
                np.testing.assert_array_equal(left, right, strict=True)
            else:
                assert left == right, field.name
