"""Trapezoid: importance sampling that fades out linearly in the log-ratio, an example of a correction of your own.

J = sg[w(l)] rho A with w = 1 for |l| <= inner, 0 for |l| >= outer and linear between, so c = w(l) e^l.
Defaults: inner = 0.2, outer = 1.0, chosen for this example.
No arXiv id: it is made up. Differs: nothing to differ from.

Run it beside the shipped corrections: replaybench sweep run smoke --baseline docs/own_baseline.py --out reports/own
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient


@dataclass(frozen=True, kw_only=True)
class Config:
    """Log-ratios up to which an item counts in full, and beyond which it does not count."""

    inner: NonNegativeFloat = 0.2
    outer: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        if self.outer <= self.inner:
            raise ValueError(f"outer ({self.outer}) must exceed inner ({self.inner})")


DECLARATION = Declaration(paper="none", bounded=True, knob=Knob(field="outer", sweep=(0.5, 1.0, 2.0)))


def surrogate(items: Items, config: Config) -> Tensor:
    """The faded ratio times the advantage."""
    log_ratio = items.log_ratio.detach()
    weight = ((config.outer - log_ratio.abs()) / (config.outer - config.inner)).clamp(0.0, 1.0)
    # The ratio is cut where the weight is 0 already, so that infinity times zero cannot happen.
    score = weight * log_ratio.clamp(max=config.outer).exp() * items.advantage
    return with_gradient(score, score, items.log_pi)
