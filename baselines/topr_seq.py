"""TOPR by episode: the truncated ratio on bad actions is that of the whole trajectory (arXiv 2503.14286).

J = A log pi where A > 0, and sg[min(W, cap)] A log pi elsewhere, with W = exp(sum of l over the episode's items). So
c = 1 for good actions and min(W, cap) for bad ones.
Default: cap = 1, the paper's canonical truncation of the negative side.
Differs: the sequence is the items of a logged episode, and the sign is that of each item's advantage, where the paper
has that of the trajectory's return. The sibling `topr` has the ratio of the single item.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from replaybench.baseline import Declaration, Items


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest episode ratio that is let through where A < 0."""

    # A smaller cap would also shrink the weight of fresh data.
    cap: Annotated[float, Field(ge=1)] = 1.0


DECLARATION = Declaration(paper="TOPR 2025", arxiv="2503.14286", bounded=True, needs=("log_mu", "episodes"))


def surrogate(items: Items, config: Config) -> Tensor:
    """The log-probability times the advantage, weighted by the truncated episode ratio where the latter is negative."""
    truncated = items.over_episode(items.log_ratio.detach()).exp().clamp(max=config.cap)
    weight = torch.where(items.advantage > 0, 1.0, truncated)
    return weight * items.advantage * items.log_pi
