"""GePPO: generalised PPO, clipped around the ratio that the current policy had at the start (arXiv 2111.00072).

J = min(rho A, clip(rho, rho_prox - epsilon, rho_prox + epsilon) A) with rho_prox = pi_prox / mu, so c = rho where A > 0
and rho <= rho_prox + epsilon, or A < 0 and rho >= rho_prox - epsilon, and 0 elsewhere. Old data are learnt from
wherever their ratio started; for A < 0 nothing bounds c from above.
Default: epsilon = 0.2, the paper's.
Differs: pi_prox is the policy at the last recomputation of the advantages. The paper's learning rate that follows the
total variation, its mixture weights over past policies and its weighted centring of advantages are left out; V-trace
advantages are a setting of the sweep. A ratio within 1e-9 of an edge counts as inside.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import EDGE_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the clipping band around the proximal policy's ratio."""

    epsilon: PositiveFloat = 0.2


DECLARATION = Declaration(
    paper="Queeney et al. 2021",
    arxiv="2111.00072",
    bounded=False,
    needs=("log_mu", "log_prox"),
    knob=Knob(field="epsilon", sweep=(0.05, 0.1, 0.2, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The smaller of the plain and the clipped ratio objective, each times the advantage."""
    ratio, centre = items.log_ratio.detach().exp(), (items.proximal() - items.log_mu).exp()
    low, high = centre - config.epsilon, centre + config.epsilon
    is_negative = items.advantage < 0
    value = torch.where(is_negative, torch.maximum(ratio, low), torch.minimum(ratio, high))
    is_inside = torch.where(is_negative, ratio >= low - EDGE_TOLERANCE, ratio <= high + EDGE_TOLERANCE)
    score = torch.where(is_inside, ratio, 0.0) * items.advantage
    return with_gradient(value * items.advantage, score, items.log_pi)
