"""Dual-clip PPO: PPO-clip with a second bound where A < 0 (Ye et al. 2020, arXiv 1912.09729).

J = min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A), and max(that, ceiling A) where A < 0. So c is PPO-clip's, except
that c = 0 where A < 0 and rho > ceiling: the side that PPO-clip leaves unbounded.
Defaults: epsilon = 0.2 and ceiling = 3, as in the widely used open trainers (verl, RLinf).
Differs: ceiling is an absolute ratio; ROLL ties it to the band, at 1 + 2 epsilon.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import clip_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the clipping band, and the largest ratio where A < 0."""

    epsilon: PositiveFloat = 0.2
    ceiling: PositiveFloat = 3.0

    def __post_init__(self) -> None:
        """Refuses a ceiling inside the band, where the two clips would contradict each other."""
        if self.ceiling <= 1 + self.epsilon:
            raise ValueError(f"ceiling={self.ceiling} is not above 1 + epsilon = {1 + self.epsilon}")


DECLARATION = Declaration(
    paper="Ye et al. 2020",
    arxiv="1912.09729",
    bounded=True,
    knob=Knob(field="epsilon", sweep=(0.05, 0.1, 0.2, 0.3, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """PPO-clip's objective, held at the ceiling times the advantage where the advantage is negative."""
    advantage = items.advantage
    clipped = clip_ratio(
        items.log_ratio, advantage, low=1 - config.epsilon, high=1 + config.epsilon, ceiling=config.ceiling
    )
    return with_gradient(clipped.value * advantage, clipped.coefficient * advantage, items.log_pi)
