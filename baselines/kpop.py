"""KPop: items are dropped where the binary KL is too large in either direction (ringtech.notion.site/kpop).

J = 1[kept] rho A, so c = rho where kept and 0 elsewhere, the same for both signs of A. Kept means D(pi||mu) <= phi and
D(mu||pi) <= phi, with D(p||q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)) of the logged action's probability.
Default: phi = 0.1, the authors'. Probabilities are clamped to [1e-6, 1 - 1e-6] inside D, as in prime-rl.
No arXiv id: the method is described in a blog post.
Differs: the squared log-ratio that prime-rl adds to the loss is left out; a KL penalty is an arm of a sweep. An action
rare under both policies is kept at any ratio, so c is unbounded. Reads probabilities, so for discrete actions only.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient

SMALLEST_PROBABILITY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest binary KL that is kept, in nats."""

    phi: PositiveFloat = 0.1


DECLARATION = Declaration(
    paper="KPop 2026",
    bounded=False,
    knob=Knob(field="phi", sweep=(0.02, 0.05, 0.1, 0.2, 0.5)),
    discrete_only=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio, or 0 where the binary KL is too large, times the advantage."""
    pi, mu = (
        log_p.detach().exp().clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        for log_p in (items.log_pi, items.log_mu)
    )
    is_kept = (binary_kl(pi, mu) <= config.phi) & (binary_kl(mu, pi) <= config.phi)
    score = torch.where(is_kept, items.log_ratio.detach().exp(), 0.0) * items.advantage
    return with_gradient(score, score, items.log_pi)


def binary_kl(p: Tensor, q: Tensor) -> Tensor:
    """D(p||q) in nats, of one event's probability."""
    return p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
