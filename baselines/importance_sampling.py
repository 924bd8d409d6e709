"""Importance sampling: the ratio without clip or weight, called No-Clip in the GIPO paper.

J = rho A, so c = rho. Unbiased for the actions where the ratio covers the whole step; its variance grows with E[rho^2].
No arXiv id: the estimator is older than arXiv's coverage of the field (Precup, Sutton and Singh, ICML 2000).
Differs: nothing is clamped. A ratio that overflows is an error, also where A = 0.
"""

from dataclasses import dataclass

from torch import Tensor

from replaybench.baseline import Declaration, Items


@dataclass(frozen=True, kw_only=True)
class Config:
    """Importance sampling has no parameters."""


DECLARATION = Declaration(paper="Precup et al. 2000", bounded=False)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio times the advantage."""
    return items.log_ratio.exp() * items.advantage
