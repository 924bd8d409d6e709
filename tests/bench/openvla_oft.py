"""Times OpenVLA-OFT's train step, its cache below the top layers, and reading images, each against the plain way."""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ratio import Ratio
from torch import Tensor

from replaybench.baseline import load_baseline
from replaybench.episode import Episode
from replaybench.learner import Learner
from replaybench.maths.ratios import token_log_prob
from replaybench.policy.openvla_oft.config import ACTION_TOKENS, NAMED
from replaybench.policy.openvla_oft.policy import OpenVLAOFTPolicy
from replaybench.replay import pack
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import TrainSettings
from replaybench.store import Card, LevelCard, ShardWriter, open_log

ROUNDS = 5
SIDE = 56
TINY: dict[str, Any] = {}
WIDE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
SIZES = {
    "openvla_vs_plain": ("512 wide, 8 layers", WIDE, 8),
    "openvla_vs_plain_tiny": ("64 wide, 4 layers", TINY, 32),
}
IMAGE_SIDE = 112


def in_turn(plain: Callable[[], object], ours: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Returns how many times longer the plain way takes, once a round; a first round warms up and is not counted."""
    ratios = []
    for _ in range(rounds + 1):
        marks = [time.perf_counter()]
        for action in (plain, ours):
            action()
            marks.append(time.perf_counter())
        ratios.append((marks[1] - marks[0]) / (marks[2] - marks[1]))
    return ratios[1:]


def episode(num_steps: int, num_tokens: int, side: int, name: str = "0") -> Episode:
    """An episode of random images and actions, as no policy made it."""
    rng = numpy_generator("bench", name)
    return Episode(
        observations=rng.integers(0, 256, (num_steps + 1, side, side, 3), dtype=np.uint8),
        action_tokens=rng.integers(0, 256, (num_steps, num_tokens)).astype(np.int16),
        log_mu=np.full((num_steps, num_tokens), -np.log(256), np.float32),
        mu_logits=None,
        reward=rng.normal(size=num_steps).astype(np.float32),
        value=np.zeros(num_steps, np.float32),
        terminated=True,
        truncated=False,
        bootstrap_value=0.0,
        behaviour_version=0,
        task="bench",
        instruction="bench",
        seed=0,
        success=False,
        simulator="none",
        episode_id=name,
    )


def make_learner(batch: int, policy_settings: dict[str, Any]) -> Learner:
    """A learner with one episode of `batch` decisions and their advantages."""
    policy = OpenVLAOFTPolicy(
        instruction="press", generator=torch_generator("bench"), config="tiny", microbatch=batch, **policy_settings
    )
    baseline = load_baseline("ppo_clip")
    replay = pack([episode(batch, policy.model.config.num_action_tokens, SIDE)], torch.device("cpu"))
    learner = Learner(policy, baseline, baseline.config({}), replay, TrainSettings(batch_size=batch))
    learner.refresh_advantages()
    return learner


def full_vocabulary_log_pi(policy: OpenVLAOFTPolicy, images: Tensor, action_tokens: Tensor) -> Tensor:
    """Log-probabilities of the logged actions by way of every position's logits over the whole vocabulary."""
    model = policy.model
    tokens = model.embed(*policy._inputs(images), None, None)
    tokens = model.run_layers(tokens, 0, len(model.layers))
    logits_BSV = model.language_model.lm_head(model.language_model.model.norm(tokens.hidden_BSD)).float()
    rows = torch.arange(len(logits_BSV))[:, None]
    return token_log_prob(logits_BSV[rows, tokens.readout_BA][..., ACTION_TOKENS], action_tokens)


def plain_step(learner: Learner, index: Tensor) -> None:
    """PPO-clip's update without what the harness saves: full vocabulary, and behaviour log-probs computed anew."""
    policy, replay = learner.policy, learner.replay
    assert isinstance(policy, OpenVLAOFTPolicy)
    images, action_tokens = replay.observations[replay.row[index]], replay.action_tokens[index]
    with torch.no_grad():
        log_mu = full_vocabulary_log_pi(policy, images, action_tokens)
    ratio = torch.exp(full_vocabulary_log_pi(policy, images, action_tokens) - log_mu)
    advantage = learner.advantage[index][:, None]
    loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    learner.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.policy_parameters(), 1.0)
    learner.optimiser.step()


def train_steps() -> Iterator[Ratio]:
    for name, (size, text, batch) in SIZES.items():
        overrides = {"text_config": NAMED["tiny"]["text_config"] | text}
        learner = make_learner(batch, {"overrides": overrides, "train": {"method": "lora"}})
        index = torch.arange(batch)
        samples = in_turn(partial(plain_step, learner, index), partial(learner.policy_step, index))
        note = f"language model {size}; LoRA, batch {batch}, {SIDE} px, 56 action tokens, vocabulary 32064; one thread"
        yield Ratio(name, samples, "times as fast", note)


def cached_steps() -> Iterator[Ratio]:
    batch, train = 64, {"method": "full", "top_layers": 1}
    uncached, cached = (make_learner(batch, {"train": train, "cache_observations": size}) for size in (0, 1000))
    index = torch.arange(batch)
    samples = in_turn(partial(uncached.policy_step, index), partial(cached.policy_step, index))
    note = f"tiny model, one of four layers trained, batch {batch}, {SIDE} px; states cached before; one thread"
    yield Ratio("top_layers_cached_vs_uncached", samples, "times as fast", note)


def item_loop(shards: list[Path]) -> int:
    """Reads images one by one, as a data set's __getitem__ often does; returns their number."""
    count = 0
    for path in shards:
        with h5py.File(path) as file:
            for i in range(len(file["observations"])):
                count += file["observations"][i].ndim == 3
    return count


def images_read() -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "log"
        with ShardWriter(folder, card=_card()) as writer:
            writer.add_checkpoint("start", 0, {"weight": torch.zeros(1)})
            for i in range(40):
                writer.add("fresh", episode(25, 16, IMAGE_SIDE, f"e{i}"))
        shards = sorted((folder / "hdf5").glob("*.h5"))
        for name in ("hdf5", "arrow"):
            samples = in_turn(partial(item_loop, shards), lambda name=name: open_log(folder).episodes("fresh", name))
            note = f"{name} shards, {item_loop(shards)} images of {IMAGE_SIDE} px, digests and checks included"
            suffix = "" if name == "hdf5" else f"_{name}"
            yield Ratio(f"images_vs_h5py_loop{suffix}", samples, "times as many images a second", note)


def _card() -> Card:
    return Card(
        dataset="bench",
        lineage=0,
        suite="bench",
        suite_settings={},
        task="bench",
        policy="openvla_oft",
        policy_settings={},
        start_checkpoint="start",
        recipe_sha256="",
        licence="CC0-1.0",
        command="bench",
        versions={},
        levels={"fresh": LevelCard(lag_updates=(0, 0))},
    )


def ratios() -> Iterator[Ratio]:
    """Yields every ratio of this file."""
    yield from train_steps()
    yield from cached_steps()
    yield from images_read()
