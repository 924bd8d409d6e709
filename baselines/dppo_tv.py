"""DPPO-TV: the trust region is a difference of probabilities, not a ratio (arXiv 2602.04879).

J = sg[min(rho, cap) 1[kept]] A log pi. Where A > 0 an item is kept while pi - mu <= delta_high, where A < 0 while
pi - mu >= -delta_low. So rare actions may move far in ratio, and likely ones hardly at all.
Defaults: delta_low = 0.2, delta_high = 0.2 and cap = 20, verl's; verl takes the deltas from the setting that holds
PPO's epsilon, and others use 0.1.
Differs: the log-ratio is not clamped to [-20, 20] as in verl; cap acts long before. Reads probabilities, so for
discrete actions only.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest loss and gain of probability, and the cap on the ratio."""

    delta_low: PositiveFloat = 0.2
    delta_high: PositiveFloat = 0.2
    # A smaller cap would also shrink the weight of fresh data.
    cap: Annotated[float, Field(ge=1)] = 20.0


DECLARATION = Declaration(
    paper="DPPO 2026",
    arxiv="2602.04879",
    bounded=True,
    knob=Knob(field="delta_high", sweep=(0.05, 0.1, 0.2, 0.3)),
    discrete_only=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The capped ratio, or 0 where the probability has moved too far, times the advantage and the log-probability."""
    weight = items.log_ratio.detach().exp().clamp(max=config.cap)
    gain = items.log_pi.detach().exp() - items.log_mu.exp()
    is_kept = torch.where(items.advantage > 0, gain <= config.delta_high, gain >= -config.delta_low)
    return torch.where(is_kept, weight, 0.0) * items.advantage * items.log_pi
