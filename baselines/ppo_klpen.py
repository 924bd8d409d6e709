"""PPO with a KL penalty to the behaviour policy (Schulman et al. 2017, section 4, arXiv 1707.06347).

J = rho A - beta (rho - 1 - l), so the score is rho A - beta (rho - 1). Over actions of mu the penalty's mean is
KL(mu||pi), and its gradient's mean is that of the KL, so it needs the logged action only. It also acts where A = 0.
Default: beta = 1, the value that torchrl's implementation starts from.
Differs: beta is fixed, where the paper doubles or halves it after each iteration to hold a target KL; such a state
does not belong to a batch. The KL is this sample estimate, not a sum over all actions.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Weight of the KL penalty."""

    beta: PositiveFloat = 1.0


DECLARATION = Declaration(
    paper="Schulman et al. 2017",
    arxiv="1707.06347",
    bounded=False,
    knob=Knob(field="beta", sweep=(0.1, 0.3, 1.0, 3.0, 10.0), wider=False),
    acts_at_zero_advantage=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio times the advantage, minus beta times the sampled KL(mu||pi)."""
    log_ratio = items.log_ratio
    return log_ratio.exp() * items.advantage - config.beta * (log_ratio.expm1() - log_ratio)
