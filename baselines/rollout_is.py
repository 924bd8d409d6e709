"""Rollout importance sampling: IcePop's mask on a band as narrow as PPO's (GLM-5 2026, arXiv 2602.15763).

J = sg[rho 1[1 - epsilon_low < rho < 1 + epsilon_high]] A log pi, so c = rho inside the band and 0 outside it, the same
for both signs of A. Where PPO-clip keeps the gradient that walks back to the log, this drops it too.
Defaults: epsilon_low = 0.2 and epsilon_high = 0.28, DAPO's, with which SkyRL's contributor of the loss reports its
best runs; the form is SkyRL's reading of the GLM-5 report.
Differs: nothing beyond that reading. Dropped items still count in the mean.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Widths of the band that is kept, below and above a ratio of 1."""

    epsilon_low: PositiveFloat = 0.2
    epsilon_high: PositiveFloat = 0.28


DECLARATION = Declaration(
    paper="GLM-5 2026",
    arxiv="2602.15763",
    bounded=True,
    knob=Knob(field="epsilon_high", sweep=(0.1, 0.2, 0.28, 0.4, 0.6)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached ratio, or 0 outside the open band, times the advantage and the log-probability."""
    ratio = items.log_ratio.detach().exp()
    is_kept = (ratio > 1 - config.epsilon_low) & (ratio < 1 + config.epsilon_high)
    return torch.where(is_kept, ratio, 0.0) * items.advantage * items.log_pi
