"""GSPO: group sequence policy optimisation, PPO-clip on the geometric-mean ratio of an episode (arXiv 2507.18071).

J = min(s_t A, clip(s_t, 1 - epsilon_low, 1 + epsilon_high) A) with s_t = sg[s / rho_t] rho_t and s = exp(mean of l over
the episode's items). So c = s for every item of the episode, and 0 where clipped on the side of A.
Defaults: epsilon_low = 3e-4 and epsilon_high = 4e-4, the paper's. The mean of l stops at 10 as in verl: above, c = 0.
Differs: the sequence is the items of a logged episode. Each item has its own advantage. The loss is the mean over all
items, not over the means of the sequences, so long episodes weigh more; that weighting is LUSPO's (arXiv 2602.05261).
"""

import math
from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient
from replaybench.maths.surrogate import clip_ratio

LARGEST_LOG_RATIO = 10.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Widths of the clipping band below and above an episode ratio of 1."""

    epsilon_low: PositiveFloat = 3e-4
    epsilon_high: PositiveFloat = 4e-4


DECLARATION = Declaration(
    paper="GSPO 2025",
    arxiv="2507.18071",
    bounded=True,
    needs=("log_mu", "episodes"),
    knob=Knob(field="epsilon_high", sweep=(4e-4, 4e-3, 4e-2, 0.2)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The smaller of the plain and the clipped episode ratio, each times the advantage."""
    advantage = items.advantage
    log_ratio = items.mean_over_episode(items.log_ratio.detach()).expand_as(advantage)
    clipped = clip_ratio(
        log_ratio,
        advantage,
        low=1 - config.epsilon_low,
        high=1 + config.epsilon_high,
        ceiling=math.exp(LARGEST_LOG_RATIO),
    )
    return with_gradient(clipped.value * advantage, clipped.coefficient * advantage, items.log_pi)
