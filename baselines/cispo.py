"""CISPO: clipped importance-sampling weight policy optimisation (MiniMax-M1 2025, arXiv 2506.13585).

J = sg[clip(rho, epsilon_min, epsilon_max)] A log pi, so c = clip(rho, epsilon_min, epsilon_max), the same for both
signs of A. The weight is clipped and not the update: every item keeps its gradient.
Defaults: epsilon_min = 0 (the canonical form clips from above only) and epsilon_max = 5, the middle of the 4, 5 and
8 that ScaleRL (arXiv 2510.13786) compares. A positive epsilon_min keeps pushing on actions that the current policy
gave up, and lets it run away from the log.
Differs: both bounds are absolute. Open trainers often reuse PPO's epsilon = 0.2 here, either as the band [0.8, 1.2] or,
where the bound is absolute, as a weight of at most 0.2; neither is the method's setting.
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Smallest and largest weight, as absolute ratios."""

    epsilon_min: NonNegativeFloat = 0.0
    epsilon_max: PositiveFloat = 5.0

    def __post_init__(self) -> None:
        """Refuses an empty band, which a clamp would silently turn into a constant."""
        if self.epsilon_min > self.epsilon_max:
            raise ValueError(f"epsilon_min={self.epsilon_min} is above epsilon_max={self.epsilon_max}")


DECLARATION = Declaration(
    paper="MiniMax-M1 2025",
    arxiv="2506.13585",
    bounded=True,
    knob=Knob(field="epsilon_max", sweep=(1.0, 2.0, 4.0, 5.0, 8.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached ratio, clipped to a band, times the advantage and the log-probability."""
    weight = items.log_ratio.detach().exp().clamp(config.epsilon_min, config.epsilon_max)
    return weight * items.advantage * items.log_pi
