"""A-3PO: decoupled PPO whose proximal policy is interpolated by lag instead of computed (arXiv 2512.06547).

log pi_prox = log mu + alpha l with alpha = (lag - 1) / lag, at least 0: the share of the way from mu to pi that was
gone one update ago. Then, as in decoupled PPO, J = sg[w 1[w <= cap]] min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) with
w = e^(alpha l) and r = e^((1 - alpha) l); for A < 0 also r <= ceiling. So c = rho where inside, and 0 elsewhere.
Defaults: epsilon = 0.3, ceiling = 3 and cap = 2, RLinf's decoupled loss, which has this approximation too.
Differs: the lag is counted in optimiser updates; in its source, versions are those sent to the actors.
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
    paper="A-3PO 2025",
    arxiv="2512.06547",
    bounded=True,
    needs=("log_mu", "lag_updates"),
    knob=Knob(field="epsilon", sweep=(0.1, 0.2, 0.3, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The clipped objective around the interpolated policy, weighted by how far that is from the one that acted."""
    advantage, log_ratio = items.advantage, items.log_ratio.detach()
    alpha = _share_before_the_last_update(items.lag().to(log_ratio.dtype))
    log_weight = alpha * log_ratio
    weight = torch.where(log_weight <= math.log(config.cap), log_weight.exp(), 0.0)
    clipped = clip_ratio(
        log_ratio - log_weight,
        advantage,
        low=1 - config.epsilon,
        high=1 + config.epsilon,
        ceiling=config.ceiling,
    )
    return with_gradient(weight * clipped.value * advantage, weight * clipped.coefficient * advantage, items.log_pi)


def _share_before_the_last_update(lag: Tensor) -> Tensor:
    return (lag - 1).clamp(min=0) / lag.clamp(min=1)
