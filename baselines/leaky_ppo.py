"""Leaky PPO: PPO-clip with a small slope of the same sign outside the band (HAL hal-04738745).

J = min(rho A, clip(rho, slope rho + (1 - slope) (1 - epsilon), slope rho + (1 - slope) (1 + epsilon)) A), so c = rho
where PPO-clip leaves the ratio alone and slope rho where it clips: no item loses its gradient.
Defaults: epsilon = 0.2 is PPO-clip's. slope = 0.01 is what public reimplementations use; that it is the
paper's is from memory, not confirmed in print.
No arXiv id: the paper is on HAL.
Differs: nothing known.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import bend_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the band, and the slope of the ratio outside it."""

    epsilon: PositiveFloat = 0.2
    slope: Annotated[float, Field(gt=0, lt=1)] = 0.01


DECLARATION = Declaration(
    paper="Leaky PPO, hal-04738745",
    bounded=False,
    knob=Knob(field="epsilon", sweep=(0.05, 0.1, 0.2, 0.3, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio, flattened outside the band, times the advantage."""
    advantage = items.advantage
    bent = bend_ratio(items.log_ratio, advantage, low=1 - config.epsilon, high=1 + config.epsilon, slope=config.slope)
    return with_gradient(bent.value * advantage, bent.coefficient * advantage, items.log_pi)
