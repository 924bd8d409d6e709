"""TOPR: tapered off-policy REINFORCE (arXiv 2503.14286).

J = A log pi where A > 0, and sg[min(rho, 1)] A log pi elsewhere. So c = 1 for good actions, however stale, and a ratio
truncated at 1 for bad ones: what the policy has given up already is not pushed down further.
Defaults: cap = 1, the paper's canonical truncation of the negative side.
Differs: the ratio and the sign are those of the item and its advantage; the paper's are those of the whole trajectory
and its return.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from replaybench.baseline import Declaration, Items


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest ratio that is let through where A < 0."""

    # A smaller cap would also shrink the weight of fresh data.
    cap: Annotated[float, Field(ge=1)] = 1.0


DECLARATION = Declaration(paper="TOPR 2025", arxiv="2503.14286", bounded=True)


def surrogate(items: Items, config: Config) -> Tensor:
    """The log-probability times the advantage, weighted by the truncated ratio where the advantage is negative."""
    truncated = items.log_ratio.detach().exp().clamp(max=config.cap)
    weight = torch.where(items.advantage > 0, 1.0, truncated)
    return weight * items.advantage * items.log_pi
