"""IcePop: masked importance sampling, items outside a band of ratios are dropped (arXiv 2510.18855).

J = sg[rho 1[low <= rho <= high]] A log pi, so c = rho inside the band and 0 outside it, the same for both signs of A.
Defaults: low = 0.5 and high = 5, those of verl, NeMo-RL and AReaL.
Differs: the ratio is that of the current policy to the logged one; the trainers above mask the mismatch between the
policy that acted and a proximal policy. Dropped items still count in the mean.
"""

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Smallest and largest ratio that is kept."""

    low: NonNegativeFloat = 0.5
    high: PositiveFloat = 5.0

    def __post_init__(self) -> None:
        """Refuses a band without 1, which would drop fresh data."""
        if not self.low <= 1 <= self.high:
            raise ValueError(f"the band [{self.low}, {self.high}] does not hold a ratio of 1")


DECLARATION = Declaration(
    paper="IcePop 2025",
    arxiv="2510.18855",
    bounded=True,
    knob=Knob(field="high", sweep=(1.5, 2.0, 3.0, 5.0, 10.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached ratio, or 0 outside the band, times the advantage and the log-probability."""
    ratio = items.log_ratio.detach().exp()
    weight = torch.where((ratio >= config.low) & (ratio <= config.high), ratio, 0.0)
    return weight * items.advantage * items.log_pi
