"""A tiny OpenVLA-OFT policy, a log of images and a learner; shared by tests in one process and in several."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replaybench.baseline import load_baseline
from replaybench.episode import Episode
from replaybench.learner import Learner
from replaybench.policy.openvla_oft.policy import OpenVLAOFTPolicy
from replaybench.replay import Replay, pack
from replaybench.rollout import policy_actor
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import AdvantageSettings, TrainSettings

SIDE = 56
NUM_STEPS = 6
# The behaviour policy is this much flatter than the policy that learns.
FLATNESS = 0.8


def make_policy(train: Mapping[str, Any], **settings: Any) -> OpenVLAOFTPolicy:
    """The tiny model; the same streams draw the same weights in every process."""
    policy = OpenVLAOFTPolicy(
        instruction="push the button", generator=torch_generator("policy"), config="tiny", train=train, **settings
    )
    shake(policy)
    return policy


def shake(policy: OpenVLAOFTPolicy) -> None:
    """Moves LoRA's second factors away from zero, so that the first ones have gradients too."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch_generator(name)))


def images(count: int, stream: str = "images") -> Tensor:
    rng = numpy_generator(stream)
    return torch.from_numpy(rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


def episode(policy: OpenVLAOFTPolicy) -> Episode:
    """Logs one episode of random images and actions, under a flatter version of the policy."""
    rng = numpy_generator("episode")
    observations = images(NUM_STEPS + 1).numpy()
    logits, values = policy_actor(policy, torch.device("cpu"))(observations)
    logits = FLATNESS * logits
    log_p = torch.log_softmax(torch.from_numpy(logits[:-1]), -1)
    tokens = rng.integers(0, 256, log_p.shape[:2])
    log_mu = log_p.gather(-1, torch.from_numpy(tokens)[..., None])[..., 0]
    return Episode(
        observations=observations,
        action_tokens=tokens.astype(np.int16),
        log_mu=log_mu.numpy(),
        mu_logits=logits[:-1].astype(np.float16),
        reward=rng.normal(size=NUM_STEPS).astype(np.float32),
        value=values[:-1],
        terminated=False,
        truncated=True,
        bootstrap_value=float(values[-1]),
        behaviour_version=0,
        task="press",
        instruction="push the button",
        seed=0,
        success=False,
        simulator="none",
        episode_id="0",
    )


def replay(policy: OpenVLAOFTPolicy) -> Replay:
    return pack([episode(policy)], torch.device("cpu"))


def learner(policy: OpenVLAOFTPolicy, log: Replay) -> Learner:
    """Advantages are normalised over the batch and KL is penalised, so the loss is no plain sum over observations."""
    settings = TrainSettings(
        batch_size=NUM_STEPS,
        learning_rate=1e-3,
        kl_coefficient=0.1,
        advantage=AdvantageSettings(normalise="batch"),
    )
    baseline = load_baseline("ppo_clip")
    made = Learner(policy, baseline, baseline.config({}), log, settings)
    made.refresh_advantages()
    return made


def gradients(policy: OpenVLAOFTPolicy) -> dict[str, Tensor]:
    """The gradients of all trained parameters, whole also where they are sharded."""
    return {
        name: policy.shares.whole(parameter.grad).clone()
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }
