"""Decoupled PPO: the clip is around a recent proximal policy, the data are corrected to it (arXiv 2110.00641).

J = sg[w 1[w <= cap]] min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) with r = pi / pi_prox and w = pi_prox / mu; for
A < 0 also r <= ceiling. So c = w r where inside, and 0 elsewhere: the product is rho, and only r is clipped.
Defaults: epsilon = 0.3, ceiling = 3 and cap = 2, RLinf's for robot policies; AReaL (arXiv 2505.24298) has it too.
Differs: the proximal policy is the one at the last recomputation of the advantages, where the paper has a running
average. The cap and the ceiling are RLinf's, not the paper's. Dropped items still count in the mean.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import clip_ratio


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the band around the proximal policy, second clip for A < 0, largest weight of the data."""

    epsilon: PositiveFloat = 0.3
    ceiling: Annotated[float, Field(gt=1)] = 3.0
    # A smaller cap would drop fresh data too.
    cap: Annotated[float, Field(ge=1)] = 2.0


DECLARATION = Declaration(
    paper="Hilton et al. 2021",
    arxiv="2110.00641",
    bounded=True,
    needs=("log_mu", "log_prox"),
    knob=Knob(field="epsilon", sweep=(0.1, 0.2, 0.3, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The clipped objective around the proximal policy, weighted by how far that is from the one that acted."""
    advantage, log_prox = items.advantage, items.proximal()
    log_weight = log_prox - items.log_mu
    weight = torch.where(log_weight <= math.log(config.cap), log_weight.exp(), 0.0)
    clipped = clip_ratio(
        items.log_pi.detach() - log_prox,
        advantage,
        low=1 - config.epsilon,
        high=1 + config.epsilon,
        ceiling=config.ceiling,
    )
    return with_gradient(weight * clipped.value * advantage, weight * clipped.coefficient * advantage, items.log_pi)
