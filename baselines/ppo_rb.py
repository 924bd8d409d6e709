"""PPO-RB: PPO-clip with rollback, a slope of the other sign outside the band (Wang et al. 2019, arXiv 1903.07940).

J = F A, with F = rho inside the clip and slope rho + (1 - slope) edge outside, where edge = 1 + epsilon (A > 0) or
1 - epsilon (A < 0). So c = rho inside and slope rho outside: negative, it drives the ratio back to the band.
Defaults: slope = -0.3 and epsilon = 0.2, the authors' for MuJoCo; they use slope = -0.02 on Atari.
Differs: nothing.
"""

from dataclasses import dataclass

from pydantic import NegativeFloat, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import bend_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the band, and the slope of the ratio outside it."""

    epsilon: PositiveFloat = 0.2
    slope: NegativeFloat = -0.3


DECLARATION = Declaration(
    paper="Wang et al. 2019",
    arxiv="1903.07940",
    bounded=False,
    knob=Knob(field="epsilon", sweep=(0.05, 0.1, 0.2, 0.3, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio, bent back at the edge of the band, times the advantage."""
    advantage = items.advantage
    bent = bend_ratio(items.log_ratio, advantage, low=1 - config.epsilon, high=1 + config.epsilon, slope=config.slope)
    return with_gradient(bent.value * advantage, bent.coefficient * advantage, items.log_pi)
