"""DRO: direct reward optimisation, a squared residual of reward and log-ratio (arXiv 2405.19107).

J = A log pi - (beta / 2) l^2, so the score is A - beta l, also where A = 0. As coded in public trainers it is the form
of kimi_opmd under another name; at beta = tau the two coincide.
Default: beta = 0.1, that of ModelScope's twinkle; verl asks the user for a positive value.
Differs: the paper fits its value function jointly on the same residual; here A comes from the harness.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Strength of the pull to the behaviour policy."""

    beta: PositiveFloat = 0.1


DECLARATION = Declaration(
    paper="DRO 2024",
    arxiv="2405.19107",
    bounded=False,
    knob=Knob(field="beta", sweep=(0.01, 0.03, 0.1, 0.3, 1.0), wider=False),
    acts_at_zero_advantage=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The advantage times the log-probability, minus a parabola in the log-ratio."""
    return items.advantage * items.log_pi - config.beta / 2 * items.log_ratio.square()
