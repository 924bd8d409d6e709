"""VCPO's step size: the learning rate follows the effective sample size of the batch's episodes (arXiv 2602.17616).

Each update's learning rate is multiplied by sqrt(min(1, ess / base_ess_ratio)), with ess = (sum W)^2 / (E sum W^2) over
the E episodes of the batch and W = exp(sum of l over an episode's items). J = sg[min(W, cap)] A log pi.
Defaults: base_ess_ratio = 1 and cap = 8, as in the authors' runs on MATH; ess is that of the ratios before truncation.
Differs: only the step size is here, without the optimal baseline, which needs gradient norms by trajectory. The
sequence is the items of a logged episode. The loss is the mean over all items, not over the means of the sequences.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob
from replaybench.maths.ratios import ess_fraction


@dataclass(frozen=True, kw_only=True)
class Config:
    """Effective sample fraction at which the learning rate is whole, and largest episode ratio let through."""

    base_ess_ratio: PositiveFloat = 1.0
    # A smaller cap would also shrink the weight of fresh data.
    cap: Annotated[float, Field(ge=1)] = 8.0


DECLARATION = Declaration(
    paper="VCPO 2026",
    arxiv="2602.17616",
    bounded=True,
    needs=("log_mu", "episodes"),
    knob=Knob(field="cap", sweep=(1.0, 2.0, 4.0, 8.0, 16.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached episode ratio, truncated from above, times the advantage and the log-probability."""
    weight = items.over_episode(items.log_ratio.detach()).exp().clamp(max=config.cap)
    return weight * items.advantage * items.log_pi


def learning_rate_scale(items: Items, config: Config) -> float:
    """The square root of the effective sample fraction of the episodes, relative to the base and at most 1."""
    ess = ess_fraction(items.each_episode(items.log_ratio.detach()))
    return float((ess / config.base_ess_ratio).clamp(max=1.0).sqrt())
