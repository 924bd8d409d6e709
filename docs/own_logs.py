"""Compares corrections on logs, a policy and a simulator of your own, none of which this project knows.

Write one log folder a lineage, <data set>/lineage-000 and so on, then sweep over the data set by its path. The card
names simulator and policy as "module:Class"; workers import them, so their module must be on PYTHONPATH.
    python docs/own_logs.py
    PYTHONPATH=docs replaybench sweep run my-sweep.toml
"""

from pathlib import Path

import numpy as np

from replaybench.policy.tabular import TabularPolicy
from replaybench.rollout import Acting, Labels, goal_plans, policy_actor, rollout
from replaybench.store import Card, LevelCard, ShardWriter
from replaybench.suites import Transition

SWEEP = """name = "my-sweep"
datasets = ["./my-data/walk"]
lineages = [0, 1]
levels = ["old"]
replay_ratios = [1, 4]
baselines = ["zero", "no_correction", "ppo_clip", "gipo"]
reference = "ppo_clip"
train = { updates = 16, batch_size = 64, learning_rate = 0.02, value_learning_rate = 0.05 }
evaluate = { episodes = 100, max_steps = 12 }
"""


class Walk:
    """Suite and simulator in one: step left (0) or right (1) from the middle of nine cells; the right end is the goal.

    A suite with a scripted expert or several tasks has the further methods of replaybench.suites.
    """

    simulator, num_goals = "walk 1", 1

    def instruction(self, task: str) -> str:
        return "walk to the right end"

    def policy_settings(self, task: str) -> dict[str, int]:
        return {"num_states": 9, "num_bins": 2}

    def make(self, task: str) -> "Walk":
        return Walk()

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        self.cell = 4
        return np.array([self.cell], np.float32)

    def step(self, action_tokens: np.ndarray) -> Transition:
        self.cell += 2 * int(action_tokens[0]) - 1
        return Transition(np.array([self.cell], np.float32), float(self.cell == 8), self.cell in (0, 8), self.cell == 8)


class WalkPolicy(TabularPolicy):
    """Any torch module with the methods of replaybench.policy.Policy will do; here a table of logits and values."""


def write_logs(folder: Path, lineage: int) -> None:
    """Logs an old policy that walks at random; training starts from a newer one that leans to the right."""
    walk, old, start = Walk(), WalkPolicy(num_states=9, num_bins=2), WalkPolicy(num_states=9, num_bins=2)
    start.logits.data[..., 1] = 0.2 + 0.1 * lineage
    card = Card(
        dataset="walk", task="walk", lineage=lineage, levels={"old": LevelCard(lag_updates=(100, 100))},
        suite="own_logs:Walk", suite_settings={}, versions={"simulator": walk.simulator}, start_checkpoint="newest",
        policy="own_logs:WalkPolicy", policy_settings={"num_states": 9, "num_bins": 2},
        recipe_sha256="", licence="CC0-1.0", command="own_logs.py",
    )  # fmt: skip
    with ShardWriter(folder, card=card) as writer:
        writer.add_checkpoint("newest", 100, start.state_dict())
        # Episodes from elsewhere are replaybench.episode.Episode records, with the log-probabilities as acted.
        plans, labels = goal_plans(walk, lineage, 150, "old"), Labels("walk", "walk", walk.simulator, 0, "old")
        for episode in rollout(policy_actor(old, start.logits.device), [walk], plans, Acting(max_steps=12), labels):
            writer.add("old", episode)


if __name__ == "__main__":
    for lineage in (0, 1):
        write_logs(Path(f"my-data/walk/lineage-{lineage:03d}"), lineage)
    Path("my-sweep.toml").write_text(SWEEP, encoding="utf-8")
