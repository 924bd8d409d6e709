"""Online policy mirror descent of Kimi k1.5: no ratio, a quadratic pull to the log (arXiv 2501.12599).

J = A log pi - (tau / 2) l^2, so the score is A - tau l: it vanishes at l = A / tau, the log-ratio that a
KL-regularised improvement would have, and acts where A = 0 too.
Default: tau = 0.1, as in ROLL.
Differs: the paper's log-ratio is that of a whole response and its baseline the mean reward of a group; here both are
the item's.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Strength of the pull to the behaviour policy."""

    tau: PositiveFloat = 0.1


DECLARATION = Declaration(
    paper="Kimi k1.5 2025",
    arxiv="2501.12599",
    bounded=False,
    knob=Knob(field="tau", sweep=(0.01, 0.03, 0.1, 0.3, 1.0), wider=False),
    acts_at_zero_advantage=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The advantage times the log-probability, minus a parabola in the log-ratio."""
    return items.advantage * items.log_pi - config.tau / 2 * items.log_ratio.square()
