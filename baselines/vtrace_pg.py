"""V-trace policy gradient of IMPALA: a truncated ratio on V-trace advantages (arXiv 1802.01561, section 4.2).

J = sg[min(rho, rho_bar)] A log pi, so c = min(rho, rho_bar), with A = r + gamma v' - V from V-trace value targets; a
sweep that names it must set train.advantage.estimator = "vtrace".
Default: rho_bar = 1, the paper's.
Differs: at token granularity the ratio is that of the token, while the targets always take the joint one.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest ratio that is let through."""

    # A smaller cap would also shrink the weight of fresh data.
    rho_bar: Annotated[float, Field(ge=1)] = 1.0


DECLARATION = Declaration(
    paper="Espeholt et al. 2018",
    arxiv="1802.01561",
    bounded=True,
    knob=Knob(field="rho_bar", sweep=(1.0, 2.0, 4.0)),
    estimator="vtrace",
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached ratio, truncated from above, times the advantage and the log-probability."""
    weight = items.log_ratio.detach().exp().clamp(max=config.rho_bar)
    return weight * items.advantage * items.log_pi
