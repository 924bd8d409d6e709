"""OPMD-simple: the plain policy gradient, damped by a constant (Trinity-RFT's opmd loss).

J = A log pi / (1 + tau), so c = 1 / (1 + tau) at any log-ratio: no correction at a smaller learning rate.
Default: tau = 1, Trinity-RFT's.
No arXiv id: only the code was read.
Differs on fresh data: the score is A / (1 + tau) there too. There is no knob, because the learning rate is one.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items


@dataclass(frozen=True, kw_only=True)
class Config:
    """Strength of the damping."""

    tau: PositiveFloat = 1.0


DECLARATION = Declaration(paper="Trinity-RFT 2025", bounded=True, needs=())


def surrogate(items: Items, config: Config) -> Tensor:
    """The advantage times the log-probability, divided by 1 + tau."""
    return items.advantage * items.log_pi / (1 + config.tau)
