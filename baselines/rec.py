"""REC: REINFORCE with a clipping mask and an optional ratio (arXiv 2509.24203).

J = sg[w 1[kept]] A log pi with w = 1 (weight none) or rho (weight ratio). clip_mode says what is kept: two_side keeps
rho in [1 - epsilon_low, 1 + epsilon_high] for both signs of A; one_side keeps what PPO-clip does not clip; ring is
two_side, plus rho <= 1 - epsilon_low_prime where A > 0 and rho >= 1 + epsilon_high_prime where A < 0.
Defaults: epsilon_low = 0.2, epsilon_high = 0.2, epsilon_low_prime = 0.6, epsilon_high_prime = 2 and weight = none,
Trinity-RFT's. There clip_mode is off, which is no_correction; one_side without a weight shows what PPO's mask does
without PPO's ratio.
Differs: the KL penalties are left out, because a penalty is an arm of a sweep, and so are the clip by whole sequences,
the clipped ratio and the weight exp(A / T).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob
from replaybench.maths.surrogate import is_inside_clip

Width = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the mask, its edges, and whether the ratio multiplies what is kept."""

    clip_mode: Literal["one_side", "two_side", "ring"] = "one_side"
    weight: Literal["none", "ratio"] = "none"
    epsilon_low: Width = 0.2
    epsilon_high: PositiveFloat = 0.2
    epsilon_low_prime: Width = 0.6
    epsilon_high_prime: PositiveFloat = 2.0


def is_bounded(config: Config) -> bool:
    """Whether no ratio multiplies the items beyond the band: without a weight, or with both sides cut."""
    return config.weight == "none" or config.clip_mode == "two_side"


DECLARATION = Declaration(
    paper="REC 2025",
    arxiv="2509.24203",
    bounded=is_bounded,
    knob=Knob(field="epsilon_high", sweep=(0.1, 0.2, 0.5, 1.0, 2.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """One or the detached ratio, or 0 where masked, times the advantage and the log-probability."""
    ratio = items.log_ratio.detach().exp()
    kept_weight = ratio if config.weight == "ratio" else torch.ones_like(ratio)
    return torch.where(_is_kept(ratio, items.advantage, config), kept_weight, 0.0) * items.advantage * items.log_pi


def _is_kept(ratio: Tensor, advantage: Tensor, config: Config) -> Tensor:
    low, high = 1 - config.epsilon_low, 1 + config.epsilon_high
    if config.clip_mode == "one_side":
        return is_inside_clip(ratio, advantage, low=low, high=high)
    is_near = (ratio >= low) & (ratio <= high)
    if config.clip_mode == "two_side":
        return is_near
    is_far_below = (advantage > 0) & (ratio <= 1 - config.epsilon_low_prime)
    is_far_above = (advantage < 0) & (ratio >= 1 + config.epsilon_high_prime)
    return is_near | is_far_below | is_far_above
