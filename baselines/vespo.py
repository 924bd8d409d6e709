"""VESPO: a Gamma-shaped weight of an episode's ratio (arXiv 2602.10693).

J = sg[phi(W)] A log pi with W = exp(sum of l over the episode's items) and phi(W) = e^rate W^power e^(-rate W), so
c = phi(W): 1 on fresh data, largest at W = power / rate, and 0 far away on both sides.
Defaults: power_positive = 2 and rate_positive = 3 where A > 0, power_negative = 3 and rate_negative = 2 elsewhere, as
in the authors' code and in TRL; the docstring of the authors' code has other numbers.
Differs: the sequence is the items of a logged episode, and the sign is that of each item's own advantage. As in the
authors' code log W is kept within [log 1e-8, 20].
"""

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items

SMALLEST_LOG_RATIO, LARGEST_LOG_RATIO = math.log(1e-8), 20.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Power and rate of the Gamma shape, for A > 0 and for the rest."""

    power_positive: PositiveFloat = 2.0
    rate_positive: PositiveFloat = 3.0
    power_negative: PositiveFloat = 3.0
    rate_negative: PositiveFloat = 2.0


DECLARATION = Declaration(paper="VESPO 2026", arxiv="2602.10693", bounded=True, needs=("log_mu", "episodes"))


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached Gamma weight of the episode's ratio, times the advantage and the log-probability."""
    log_ratio = items.over_episode(items.log_ratio.detach()).clamp(SMALLEST_LOG_RATIO, LARGEST_LOG_RATIO)
    weight = torch.where(
        items.advantage > 0,
        _gamma_weight(log_ratio, config.power_positive, config.rate_positive),
        _gamma_weight(log_ratio, config.power_negative, config.rate_negative),
    )
    return weight * items.advantage * items.log_pi


def _gamma_weight(log_ratio: Tensor, power: float, rate: float) -> Tensor:
    return torch.exp(rate + power * log_ratio - rate * log_ratio.exp())
