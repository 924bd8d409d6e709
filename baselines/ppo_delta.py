"""Two-sided clipping of INTELLECT-2: the unclipped ratio of PPO-clip is itself capped (arXiv 2505.07291).

J = min(min(rho, delta) A, clip(rho, 1 - epsilon, 1 + epsilon) A), so c is PPO-clip's, and 0 where A < 0 and
rho > delta. With delta above 1 + epsilon, which is required here, this is dual-clip PPO with ceiling = delta.
Defaults: epsilon = 0.2. delta = 4 is attributed to INTELLECT-2 from memory: the form is that of TRL's code, which
leaves delta unset, and the number is not confirmed in print.
Differs: TRL only recommends delta > 1 + epsilon; a smaller one would cut the band itself and is refused.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import clip_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the clipping band, and the cap on the ratio where A < 0."""

    epsilon: PositiveFloat = 0.2
    delta: PositiveFloat = 4.0

    def __post_init__(self) -> None:
        """Refuses a cap inside the band."""
        if self.delta <= 1 + self.epsilon:
            raise ValueError(f"delta={self.delta} is not above 1 + epsilon = {1 + self.epsilon}")


DECLARATION = Declaration(
    paper="INTELLECT-2 2025",
    arxiv="2505.07291",
    bounded=True,
    knob=Knob(field="delta", sweep=(1.5, 2.0, 4.0, 8.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The smaller of the capped and the clipped ratio objective, each times the advantage."""
    advantage = items.advantage
    clipped = clip_ratio(
        items.log_ratio, advantage, low=1 - config.epsilon, high=1 + config.epsilon, ceiling=config.delta
    )
    return with_gradient(clipped.value * advantage, clipped.coefficient * advantage, items.log_pi)
