"""Truly PPO: beyond a trust region in exact KL the policy is pulled back to the data (arXiv 1903.07940).

J = rho A - 1[outside] rollback KL(mu||pi), with outside where KL(mu||pi) >= delta and (rho - 1) A > 0. So c = rho
everywhere, unbounded, plus the gradient of the KL through the logits where the item would move a policy that has moved
too far.
Defaults: delta = 0.03 and rollback = 5, the authors' for MuJoCo; 0.05 and 0.4 for Atari, without rho A outside.
Differs: at token granularity each action token has its own KL.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """KL(mu||pi) from which on items are pulled back, in nats, and how strongly."""

    delta: PositiveFloat = 0.03
    rollback: PositiveFloat = 5.0


DECLARATION = Declaration(
    paper="Wang et al. 2019",
    arxiv="1903.07940",
    bounded=False,
    needs=("log_mu", "mu_logits"),
    knob=Knob(field="delta", sweep=(0.003, 0.01, 0.03, 0.1, 0.3)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio times the advantage, minus the exact KL where the policy has moved too far."""
    log_ratio, kl = items.log_ratio, items.kl_behaviour
    is_outside = (kl >= config.delta) & (log_ratio.sign() * items.advantage > 0)
    return log_ratio.exp() * items.advantage - torch.where(is_outside, config.rollback * kl, 0.0)
