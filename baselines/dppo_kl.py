"""DPPO-KL: the trust region is the KL divergence of "this action or any other" (arXiv 2602.04879).

J = sg[min(rho, cap) 1[kept]] A log pi. With D = mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)), an item is kept
while D <= delta_high (A > 0) or D <= delta_low (A < 0), and always where pi moved against the advantage.
Defaults: delta_low = 0.2, delta_high = 0.2 and cap = 20, verl's; verl takes the deltas from the setting that holds
PPO's epsilon.
Differs: as in verl, 1e-8 keeps the complements 1 - mu and 1 - pi away from 0; unlike verl, the log-ratio is not
clamped to [-20, 20]. Reads probabilities, so for discrete actions only.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob

SMALLEST_COMPLEMENT = 1e-8


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest divergence for either sign of the advantage, and the cap on the ratio."""

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
    """The capped ratio, or 0 where the policy has moved too far, times the advantage and the log-probability."""
    log_ratio = items.log_ratio.detach()
    divergence = binary_kl(items.log_mu, items.log_pi.detach())
    is_kept = torch.where(
        items.advantage > 0,
        (divergence <= config.delta_high) | (log_ratio <= 0),
        (divergence <= config.delta_low) | (log_ratio >= 0),
    )
    weight = log_ratio.exp().clamp(max=config.cap)
    return torch.where(is_kept, weight, 0.0) * items.advantage * items.log_pi


def binary_kl(log_mu: Tensor, log_pi: Tensor) -> Tensor:
    """KL(mu||pi) in nats, of the event that the logged action is taken."""
    # A joint probability summed from tokens may exceed 1 in its last bit; the complement must not turn negative.
    other_mu, other_pi = ((-torch.expm1(log_p)).clamp(min=0.0) for log_p in (log_mu, log_pi))
    complement = other_mu * torch.log((other_mu + SMALLEST_COMPLEMENT) / (other_pi + SMALLEST_COMPLEMENT))
    return log_mu.exp() * (log_mu - log_pi) + complement
