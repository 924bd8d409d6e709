"""TR-PPO: trust-region PPO, which stops where the exact KL is too large and not where the ratio is (arXiv 1903.07940).

J = rho A, without gradient where KL(mu||pi) >= delta and (rho - 1) A > 0: the state's policy has moved too far and the
item would move it further. So c = rho or 0, and unbounded for A < 0.
Default: delta = 0.03, the authors' for MuJoCo; 0.05 for Atari.
Differs: at token granularity each action token has its own KL.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient


@dataclass(frozen=True, kw_only=True)
class Config:
    """KL(mu||pi) from which on items that would increase it are dropped, in nats."""

    delta: PositiveFloat = 0.03


DECLARATION = Declaration(
    paper="Wang et al. 2019",
    arxiv="1903.07940",
    bounded=False,
    needs=("log_mu", "mu_logits"),
    knob=Knob(field="delta", sweep=(0.003, 0.01, 0.03, 0.1, 0.3)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio times the advantage, without gradient outside the trust region."""
    log_ratio = items.log_ratio.detach()
    is_outside = (items.kl_behaviour.detach() >= config.delta) & (log_ratio.sign() * items.advantage > 0)
    value = log_ratio.exp() * items.advantage
    return with_gradient(value, torch.where(is_outside, 0.0, value), items.log_pi)
