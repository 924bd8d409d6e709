"""What several test files share: a small log of the slippery grid, sweeps over it, and the command line."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from replaybench.evaluate import open_world
from replaybench.plan import SweepSpec
from replaybench.policy.tabular import TabularPolicy
from replaybench.rollout import Acting, goal_plans, policy_actor, rollout
from replaybench.seeding import torch_generator
from replaybench.store import Card, LevelCard, ShardWriter

# Test processes share the cores; threads of their own would only wait for each other.
torch.set_num_threads(1)

TASK = "gridworld-5x5"
LEVELS = {"fresh": 40, "stale": 0}
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered and fetched by tests stays with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLAYBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the data set `toy`, two lineages of two levels; made once, to be read only."""
    data = tmp_path_factory.mktemp("data")
    for lineage in (0, 1):
        write_grid_log(data / "toy" / f"lineage-{lineage:03d}", lineage)
    return data


def write_grid_log(folder: Path, lineage: int) -> None:
    """Logs random walkers: the start policy's own episodes, and those of one that it moved away from."""
    world = open_world("gridworld", {}, TASK)
    settings = world.suite.policy_settings(TASK)
    older, start = TabularPolicy(**settings), TabularPolicy(**settings)
    generator = torch_generator("toy", lineage)
    with torch.no_grad():
        older.logits.normal_(0.0, 0.5, generator=generator)
        start.logits.copy_(older.logits).add_(0.5 * torch.randn(older.logits.shape, generator=generator))
        start.values.normal_(0.0, 0.1, generator=generator)
    card = Card(
        dataset="toy",
        lineage=lineage,
        suite="gridworld",
        suite_settings={},
        task=TASK,
        policy="tabular",
        policy_settings=settings,
        start_checkpoint="start",
        recipe_sha256="",
        licence="CC0-1.0",
        command="none",
        versions={"simulator": world.suite.simulator},
        levels={name: LevelCard(lag_updates=(40 - version, 40 - version)) for name, version in LEVELS.items()},
    )
    with ShardWriter(folder, card=card, episodes_per_shard=60) as writer:
        writer.add_checkpoint("start", 40, start.state_dict())
        for (level, version), policy in zip(LEVELS.items(), (start, older), strict=True):
            plans = goal_plans(world.suite, 10 + lineage, 120, level)
            labels = world.labels(level, version)
            actor = policy_actor(policy, torch.device("cpu"))
            for episode in rollout(actor, world.environments, plans, Acting(max_steps=20), labels):
                writer.add(level, episode)


@pytest.fixture
def toy_sweep(toy_data: Path) -> Callable[..., SweepSpec]:
    """Returns a function that makes a quick sweep over `toy`; keyword arguments replace fields."""

    def make(**changes: Any) -> SweepSpec:
        values: dict[str, Any] = {
            "name": "quick",
            "datasets": (str(toy_data / "toy"),),
            "lineages": (0, 1),
            "levels": ("fresh", "stale"),
            "replay_ratios": (1.0, 4.0),
            "baselines": ("zero", "ppo_clip", "gipo"),
            "reference": "ppo_clip",
            "train": {"updates": 8, "batch_size": 32, "learning_rate": 0.05, "value_warmup_updates": 4},
            "evaluate": {"episodes": 10, "max_steps": 20},
        }
        return SweepSpec.model_validate(values | changes)

    return make


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Returns a function that runs `replaybench` with these arguments in a process of its own, in `tmp_path`."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "replaybench", *map(str, arguments)]
        environment = {"PYTHONWARNINGS": "ignore", **os.environ, **options.pop("env", {})}
        return subprocess.run(
            command, cwd=options.pop("cwd", tmp_path), env=environment, capture_output=True, text=True, timeout=600
        )

    return run
