"""ASPO: asymmetric importance sampling, the ratio turned over where A > 0 (arXiv 2510.06062).

J = sg[w] A log pi. Where A > 0, w = min(1 / rho, cap) up to rho = 1 + epsilon_high and 0 beyond it; where A < 0,
w = min(rho, cap) from rho = 1 - epsilon_low on and 0 below it. So good actions that the policy has lost get more
weight, not less.
Defaults: epsilon_low = 0.2, epsilon_high = 0.2 and cap = 3, the authors' code.
Differs: the authors widen the band to 0.4 on tokens of low entropy; here it is the same for all items.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob
from replaybench.maths.surrogate import is_inside_clip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Band of the hard cut, and the largest weight."""

    epsilon_low: PositiveFloat = 0.2
    epsilon_high: PositiveFloat = 0.2
    # A smaller cap would also shrink the weight of fresh data.
    cap: Annotated[float, Field(ge=1)] = 3.0


DECLARATION = Declaration(
    paper="ASPO 2025",
    arxiv="2510.06062",
    bounded=True,
    knob=Knob(field="cap", sweep=(1.0, 1.5, 3.0, 5.0, 10.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The capped weight, inverted where the advantage is positive, times the advantage and the log-probability."""
    log_ratio = items.log_ratio.detach()
    weight = torch.where(items.advantage < 0, log_ratio, -log_ratio).exp().clamp(max=config.cap)
    is_kept = is_inside_clip(log_ratio.exp(), items.advantage, low=1 - config.epsilon_low, high=1 + config.epsilon_high)
    return torch.where(is_kept, weight, 0.0) * items.advantage * items.log_pi
