"""AWR: advantage-weighted regression, cloning of the log with a preference for good actions (arXiv 1910.00177).

J = min(exp(A / temperature), cap) log pi, so the score is that weight: positive for either sign of A, also where
A = 0, and the same at any log-ratio. No action is ever pushed down.
Defaults: temperature = 1 and cap = 20, as in all of the authors' published configurations. AWAC (arXiv 2006.09359) has
the same actor loss with the advantage of a learned Q; CORL's version of it caps at 100.
Differs on fresh data: the score is the weight, not A. The authors standardise A over their replay buffer first; here A
is the harness's, so the temperature has its scale.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Advantage over which the weight grows e-fold, and the largest weight."""

    temperature: PositiveFloat = 1.0
    cap: PositiveFloat = 20.0


DECLARATION = Declaration(
    paper="Peng et al. 2019",
    arxiv="1910.00177",
    bounded=True,
    needs=(),
    knob=Knob(field="temperature", sweep=(0.1, 0.3, 1.0, 3.0, 10.0)),
    acts_at_zero_advantage=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The capped exponential of the advantage times the log-probability."""
    weight = (items.advantage / config.temperature).exp().clamp(max=config.cap)
    return weight * items.log_pi
