"""What logging a run's diagnostics costs, as a share of the training time of the default sweep.

python tests/bench/run.py diagnostics_share
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
from ratio import Ratio

from replaybench.baseline import load_baseline
from replaybench.diagnostics import Rows, step_rows
from replaybench.episode import Episode
from replaybench.learner import Learner, lags
from replaybench.policy.mlp import MLPPolicy
from replaybench.replay import pack
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import TrainSettings

ROUNDS = 15
SETTINGS = TrainSettings(batch_size=512)
NUM_EPISODES, STEPS, TOKENS, BINS = 60, 60, 4, 32


def mixed_replay_learner() -> Learner:
    """Returns a learner at the default sweep's sizes on a log of lags 0 to 200, as of the level `mixed`."""
    rng = numpy_generator("bench", "diagnostics")
    episodes = [
        Episode(
            observations=rng.normal(size=(STEPS + 1, 39)).astype(np.float32),
            action_tokens=rng.integers(0, BINS, size=(STEPS, TOKENS)).astype(np.int16),
            log_mu=np.log(rng.uniform(0.01, 0.1, size=(STEPS, TOKENS))).astype(np.float32),
            reward=rng.normal(size=STEPS).astype(np.float32),
            value=np.zeros(STEPS, np.float32),
            terminated=False,
            truncated=True,
            bootstrap_value=0.0,
            behaviour_version=200 - 50 * (number % 5),
            task="none",
            instruction="",
            seed=number,
            success=False,
            simulator="none",
            episode_id=str(number),
        )
        for number in range(NUM_EPISODES)
    ]
    policy = MLPPolicy(
        observation_size=39,
        num_action_tokens=TOKENS,
        num_bins=BINS,
        hidden=128,
        value_hidden=128,
        generator=torch_generator("bench"),
    )
    baseline = load_baseline("gipo")
    replay = pack(episodes, torch.device("cpu"))
    return Learner(policy, baseline, baseline.config(), replay, SETTINGS, start_version=200)


def ratios() -> Iterator[Ratio]:
    """Yields the time of one record over that of the `log_every` updates, advantages included, that it stands for."""
    learner = mixed_replay_learner()
    lag_N = lags(learner.replay, learner.start_version)
    batches = learner.batches((ROUNDS + 1) * SETTINGS.log_every, numpy_generator("bench", "minibatches"))
    samples = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for update in range(SETTINGS.log_every):
            index = next(batches)
            learner.refresh_if_due(learner.num_updates, update, len(index))
            step = learner.policy_step(index)
        trained = time.perf_counter()
        step_rows(Rows(), learner.num_updates, step, lag_N[index])
        samples.append((time.perf_counter() - trained) / (trained - start))
    note = (
        f"one record for {SETTINGS.log_every} updates of {SETTINGS.batch_size} decisions; default policy, level mixed"
    )
    # The first round pays for what is loaded once.
    yield Ratio("diagnostics_share", samples[1:], "of the training time", note)
