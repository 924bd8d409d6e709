"""CE-GPPO: clipped items keep a constant gradient instead of none (arXiv 2509.20712).

J = w A with w = rho inside PPO's clip; outside, the gradient is that of the edge: c = beta_low (1 - epsilon_low) where
A < 0 and rho < 1 - epsilon_low, and c = beta_high (1 + epsilon_high) where A > 0 and rho > 1 + epsilon_high.
Defaults: beta_low = 0.25 and beta_high = 1 (the code's beta_1 and beta_2), epsilon_low = 0.2 and epsilon_high = 0.28.
Both betas at 1 are the method's predecessor, GPPO.
Differs: ceiling = None leaves out the dual clip that the authors' trainer applies on top (c = 0 where A < 0 and
rho > ceiling; 3 is the usual value). Without it nothing bounds c where A < 0 and rho is large.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import EDGE_TOLERANCE, is_inside_clip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Band, what is left of the gradient beyond either edge, and an optional cap on the ratio where A < 0."""

    epsilon_low: PositiveFloat = 0.2
    epsilon_high: PositiveFloat = 0.28
    beta_low: NonNegativeFloat = 0.25
    beta_high: NonNegativeFloat = 1.0
    # A smaller ceiling would also cut fresh data.
    ceiling: Annotated[float, Field(gt=1)] | None = None


def is_bounded(config: Config) -> bool:
    """Whether the dual clip is on; it bounds the one side that the band leaves open."""
    return config.ceiling is not None


DECLARATION = Declaration(
    paper="CE-GPPO 2025",
    arxiv="2509.20712",
    bounded=is_bounded,
    knob=Knob(field="epsilon_high", sweep=(0.2, 0.24, 0.28, 0.4, 0.6)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio inside the band and a constant beyond it, times the advantage."""
    advantage = items.advantage
    low, high = 1 - config.epsilon_low, 1 + config.epsilon_high
    ratio = items.log_ratio.detach().exp()
    outside = torch.full_like(ratio, config.beta_high * high).masked_fill(advantage < 0, config.beta_low * low)
    coefficient = torch.where(is_inside_clip(ratio, advantage, low=low, high=high), ratio, outside)
    value = coefficient
    if config.ceiling is not None:
        is_above = (advantage < 0) & (ratio > config.ceiling + EDGE_TOLERANCE)
        coefficient = coefficient.masked_fill(is_above, 0.0)
        value = value.masked_fill(is_above, config.ceiling)
    return with_gradient(value * advantage, coefficient * advantage, items.log_pi)
