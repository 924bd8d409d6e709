"""DAPO's clip-higher: PPO-clip with a wider upper edge (arXiv 2503.14476).

J = min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A), so c = rho where A > 0 and rho <= 1 + epsilon_high, or
A < 0 and rho >= 1 - epsilon_low, and 0 elsewhere. For A < 0 nothing bounds c from above.
Defaults: epsilon_low = 0.2 and epsilon_high = 0.28, the paper's, and those of SimpleVLA-RL's LIBERO runs.
Differs: only the clipping of DAPO is here; its dynamic sampling and its length penalty shape the data, not the weight.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import clip_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Widths of the clipping band below and above a ratio of 1."""

    epsilon_low: PositiveFloat = 0.2
    epsilon_high: PositiveFloat = 0.28


DECLARATION = Declaration(
    paper="DAPO 2025",
    arxiv="2503.14476",
    bounded=False,
    knob=Knob(field="epsilon_high", sweep=(0.2, 0.24, 0.28, 0.4, 0.6)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The smaller of the plain and the clipped ratio objective, with an edge of its own on each side."""
    advantage = items.advantage
    clipped = clip_ratio(items.log_ratio, advantage, low=1 - config.epsilon_low, high=1 + config.epsilon_high)
    return with_gradient(clipped.value * advantage, clipped.coefficient * advantage, items.log_pi)
