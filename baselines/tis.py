"""TIS: truncated importance sampling in score form (LlamaRL, arXiv 2505.24034, calls it AIPO).

J = sg[min(rho, cap)] A log pi, so c = min(rho, cap): never 0, for either sign of A.
Default: cap = 2.0, as in the widely used open trainers (verl, slime, open-instruct). LlamaRL takes 2 to 10, others 1.
Differs: the ratio is that of the current policy to the logged one; trainers that keep a proximal policy truncate only
its mismatch with the policy that acted, and clip on top.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest ratio that is let through."""

    cap: PositiveFloat = 2.0


DECLARATION = Declaration(
    paper="LlamaRL 2025",
    arxiv="2505.24034",
    bounded=True,
    knob=Knob(field="cap", sweep=(1.0, 1.5, 2.0, 5.0, 10.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached ratio, truncated from above, times the advantage and the log-probability."""
    weight = items.log_ratio.detach().exp().clamp(max=config.cap)
    return weight * items.advantage * items.log_pi
