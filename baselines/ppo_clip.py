"""PPO-clip: proximal policy optimisation with a clipped ratio (Schulman et al. 2017, eq. 7, arXiv 1707.06347).

J = min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A), so c = rho where A > 0 and rho <= 1 + epsilon, or A < 0 and
rho >= 1 - epsilon, and 0 elsewhere. For A < 0 nothing bounds c from above.
Default: epsilon = 0.2, the paper's best setting (its table 1).
Differs: a ratio within 1e-9 of an edge counts as inside, so that a ratio that is 1.2 on paper keeps its gradient
whichever way its last bit fell; float32 does not resolve the difference.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import clip_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the clipping band around a ratio of 1."""

    epsilon: PositiveFloat = 0.2


DECLARATION = Declaration(
    paper="Schulman et al. 2017",
    arxiv="1707.06347",
    bounded=False,
    knob=Knob(field="epsilon", sweep=(0.05, 0.1, 0.2, 0.3, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The smaller of the plain and the clipped ratio objective, each times the advantage."""
    advantage = items.advantage
    clipped = clip_ratio(items.log_ratio, advantage, low=1 - config.epsilon, high=1 + config.epsilon)
    return with_gradient(clipped.value * advantage, clipped.coefficient * advantage, items.log_pi)
