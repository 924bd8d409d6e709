"""Trains on a log of 5 GB and prints how much memory that took.

python tests/bench/large_log.py [GB]
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from replaybench.baseline import load_baseline
from replaybench.episode import Episode
from replaybench.learner import Learner
from replaybench.policy.mlp import MLPPolicy
from replaybench.replay import pack
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import TrainSettings
from replaybench.store import Card, LevelCard, Log, ShardWriter

STATE, TOKENS, BINS, STEPS = 39, 4, 256, 500
UPDATES = 50
SETTINGS = {"observation_size": STATE, "num_action_tokens": TOKENS, "num_bins": BINS}


def write_random_log(
    folder: Path, num_episodes: int, *, logits: bool, formats: tuple[str, ...] = ("arrow", "hdf5")
) -> None:
    """Writes a log of random states and actions with the sizes of a Meta-World task."""
    rng = numpy_generator("bench", "log")
    card = Card(
        dataset="random",
        lineage=0,
        suite="gridworld",
        suite_settings={},
        task="random",
        policy="mlp",
        policy_settings=SETTINGS,
        start_checkpoint="start",
        recipe_sha256="0" * 64,
        licence="CC0-1.0",
        command="benchmark",
        versions={},
        levels={"fresh": LevelCard(lag_updates=(0, 0))},
    )
    with ShardWriter(folder, card=card, formats=formats) as writer:
        writer.add_checkpoint("start", 0, new_policy().state_dict())
        for number in range(num_episodes):
            writer.add("fresh", random_episode(rng, str(number), logits))


def new_policy() -> MLPPolicy:
    return MLPPolicy(**SETTINGS, generator=torch_generator("bench"))


def random_episode(rng: np.random.Generator, name: str, logits: bool) -> Episode:
    mu_logits = rng.standard_normal((STEPS, TOKENS, BINS), np.float32)
    tokens = rng.integers(0, BINS, (STEPS, TOKENS))
    log_mu = mu_logits - np.log(np.exp(mu_logits).sum(-1, keepdims=True))
    return Episode(
        observations=rng.standard_normal((STEPS + 1, STATE), np.float32),
        action_tokens=tokens.astype(np.int16),
        log_mu=np.take_along_axis(log_mu, tokens[..., None], -1)[..., 0],
        mu_logits=mu_logits.astype(np.float16) if logits else None,
        reward=rng.random(STEPS, np.float32),
        value=rng.random(STEPS, np.float32),
        terminated=False,
        truncated=True,
        bootstrap_value=0.5,
        behaviour_version=0,
        task="random",
        instruction="",
        seed=0,
        success=False,
        simulator="none",
        episode_id=name,
    )


def train(folder: Path) -> None:
    """Makes updates with a penalty on the KL to the logged logits, and prints the peak of resident memory."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    replay = pack(Log(folder).episodes("fresh"), torch.device("cpu"))
    opened = time.perf_counter()
    policy = new_policy()
    baseline = load_baseline("ppo_clip")
    settings = TrainSettings(updates=UPDATES, kl_coefficient=0.1)
    learner = Learner(policy, baseline, baseline.config({}), replay, settings)
    learner.refresh_advantages()
    estimated = time.perf_counter()
    for index in learner.batches(UPDATES, numpy_generator("bench")):
        learner.policy_step(index)
    update_ms = 1e3 * (time.perf_counter() - estimated) / UPDATES
    # What getrusage says would include the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1e6
    print(
        f"{replay.num_steps} steps: opened and checked in {opened - started:.0f} s, advantages in "
        f"{estimated - opened:.0f} s, {update_ms:.0f} ms an update of {settings.batch_size}; peak memory {peak:.2f} GB"
    )


def main(gigabytes: float) -> None:
    with TemporaryDirectory() as folder:
        step_bytes = 4 * STATE + 2 * TOKENS * BINS + 6 * TOKENS + 8
        write_random_log(Path(folder), int(gigabytes * 1e9 / step_bytes / STEPS), logits=True, formats=("arrow",))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.arrow"))
        print(f"a log of {size / 1e9:.2f} GB")
        subprocess.run([sys.executable, __file__, "--train", folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(Path(sys.argv[2]))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
