"""P3O: policy-on policy-off optimisation, cap and pull set by the batch's effective sample size (arXiv 2605.12380).

J = sg[min(rho, ess)] A log pi - (1 - ess) (l + 1 / rho - 1) with ess = (sum rho)^2 / (N sum rho^2) over the batch.
The second term is a sample estimate of KL(pi||mu), so the score is min(rho, ess) A - (1 - ess) (1 - 1 / rho). It also
acts where A = 0, and is unbounded where rho is small. There is nothing to tune.
Differs: ess is that of the minibatch on one device. The form is that of FeynRL's code, whose estimate of the KL takes
actions of mu for actions of pi. It goes back to Fakoor et al. 2019.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from replaybench.baseline import Declaration, Items, with_gradient
from replaybench.maths.ratios import ess_fraction


@dataclass(frozen=True, kw_only=True)
class Config:
    """The method has no parameters."""


DECLARATION = Declaration(
    paper="P3O 2026", arxiv="2605.12380", bounded=False, acts_at_zero_advantage=True, batch_statistics=True
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The capped ratio times advantage and log-probability, minus the estimated KL(pi||mu) in what ess leaves."""
    log_ratio = items.log_ratio.detach()
    ess = ess_fraction(log_ratio[items.mask])
    # In log space, because 0 times an infinite 1 / rho is what a single stale item would give.
    inverse = torch.exp((1 - ess).log() - log_ratio)
    policy = log_ratio.exp().clamp(max=ess) * items.advantage
    penalty = (1 - ess) * (log_ratio - 1) + inverse
    score = policy - (1 - ess) + inverse
    return with_gradient(policy * items.log_pi.detach() - penalty, score, items.log_pi)
