"""Staleness-weighted sampling: fresher decisions are drawn more often, then corrected by plain importance sampling.

A decision is drawn with probability proportional to 1 / (lag + 1), and J = rho A, so c = rho.
No arXiv id: the sampler is torchrl's StalenessAwareSampler, with its default weight and without its hard cut-off.
Differs: torchrl's sampler goes with any loss; plain importance sampling shows what the drawing does by itself. The lag
is that at the start of the run, one for each decision. The drawing itself is not corrected for.
"""

from dataclasses import dataclass

from torch import Tensor

from replaybench.baseline import Declaration, Items


@dataclass(frozen=True, kw_only=True)
class Config:
    """The method has no parameters."""


DECLARATION = Declaration(paper="torchrl", bounded=False)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio times the advantage."""
    return items.log_ratio.exp() * items.advantage


def sampling_weight(lag_updates: Tensor, config: Config) -> Tensor:
    """The weight with which each decision is drawn, [N]."""
    return 1.0 / (lag_updates.double() + 1.0)
