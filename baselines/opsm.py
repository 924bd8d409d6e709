"""OPSM: off-policy sequence masking on top of PPO-clip (DeepSeek-V3.2, arXiv 2512.02556).

J = min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A), and 0 where A < 0 in an episode whose mean of log mu - log pi
exceeds delta. So bad actions of episodes that the policy has left are not learnt from; c is unbounded for A < 0.
Defaults: delta = 1e-4 as in slime (TRL's example has 0.5), epsilon = 0.2 as in PPO.
Differs: the sequence is the items of a logged episode, and the sign is that of each item's own advantage. Dropped items
still count in the mean.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import clip_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest mean of log mu - log pi at which bad actions count, and half-width of PPO's band."""

    delta: PositiveFloat = 1e-4
    epsilon: PositiveFloat = 0.2


DECLARATION = Declaration(
    paper="DeepSeek-V3.2 2025",
    arxiv="2512.02556",
    bounded=False,
    needs=("log_mu", "episodes"),
    knob=Knob(field="delta", sweep=(1e-4, 1e-2, 0.1, 0.5)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """PPO's clipped objective, or 0 for the bad actions of an episode that the policy has left."""
    advantage, log_ratio = items.advantage, items.log_ratio.detach()
    is_kept = (advantage >= 0) | (items.mean_over_episode(log_ratio) >= -config.delta)
    clipped = clip_ratio(log_ratio, advantage, low=1 - config.epsilon, high=1 + config.epsilon)
    value, coefficient = (torch.where(is_kept, part, 0.0) for part in clipped)
    return with_gradient(value * advantage, coefficient * advantage, items.log_pi)
