"""Behaviour cloning: maximum likelihood of the logged actions, whatever came of them.

J = log pi, so the score is 1 for every item. The control that uses the log and no reward.
No arXiv id: the method is older than arXiv (Pomerleau, NIPS 1988).
Differs on fresh data: the score is 1, not A.
"""

from dataclasses import dataclass

from torch import Tensor

from replaybench.baseline import Declaration, Items


@dataclass(frozen=True, kw_only=True)
class Config:
    """Behaviour cloning has no parameters."""


DECLARATION = Declaration(paper="Pomerleau 1988", bounded=True, needs=(), acts_at_zero_advantage=True)


def surrogate(items: Items, config: Config) -> Tensor:
    """The log-probability of the logged action."""
    return 1.0 * items.log_pi
