"""No correction: the plain policy gradient, as if the logged actions were the current policy's own.

J = A log pi, so c = 1 however stale the data. The control that shows what ignoring policy lag costs.
No arXiv id: this is REINFORCE with a baseline (Williams, Machine Learning 8, 1992).
Differs: nothing.
"""

from dataclasses import dataclass

from torch import Tensor

from replaybench.baseline import Declaration, Items


@dataclass(frozen=True, kw_only=True)
class Config:
    """The plain policy gradient has no parameters."""


DECLARATION = Declaration(paper="Williams 1992", bounded=True, needs=())


def surrogate(items: Items, config: Config) -> Tensor:
    """The advantage times the log-probability of the logged action."""
    return items.advantage * items.log_pi
