"""AsymRE: asymmetric REINFORCE, a baseline below the mean return (arXiv 2506.20520).

J = (R - V - delta_v) log pi = (A - delta_v) log pi with delta_v < 0, so the score is A - delta_v at any log-ratio, also
where A = 0: a plain policy gradient plus -delta_v times behaviour cloning.
Default: delta_v = -0.1 is attributed to the paper from memory, not confirmed in print; that a slightly negative value
keeps training stable is its finding.
Differs on fresh data: the score is shifted there too. The paper's rewards are 0 or 1 and V is the mean of a group;
here A is the harness's, so delta_v has its scale.
"""

from dataclasses import dataclass

from pydantic import NegativeFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shift of the baseline, in units of the advantage."""

    delta_v: NegativeFloat = -0.1


DECLARATION = Declaration(
    paper="Arnal et al. 2025",
    arxiv="2506.20520",
    bounded=True,
    needs=(),
    knob=Knob(field="delta_v", sweep=(-1.0, -0.3, -0.1, -0.03), wider=False),
    acts_at_zero_advantage=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The advantage over a lowered baseline, times the log-probability."""
    return (items.advantage - config.delta_v) * items.log_pi
