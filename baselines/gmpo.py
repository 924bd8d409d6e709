"""GMPO: geometric-mean policy optimisation, item ratios clipped before their mean is taken (arXiv 2507.20673).

J = A' exp(mean of l'), with A' the episode's mean advantage and l' = min(l, epsilon) where A' > 0, max(l, -epsilon)
where A' < 0. So an item's score is A' exp(mean of l') inside its clip, and 0 outside; nothing bounds it for A' < 0.
Default: epsilon = 0.4, the paper's from memory, not confirmed in print; verl takes PPO's epsilon instead.
Differs on fresh data: every item scores the mean advantage of its episode, where a language model's tokens all have
the same one anyway. The sequence is the items of a logged episode. The loss is the mean over all items, so a long
episode weighs more than in verl. verl clips by the sign of each item's own advantage.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient


@dataclass(frozen=True, kw_only=True)
class Config:
    """Half-width of the band that log-ratios are clipped to."""

    epsilon: PositiveFloat = 0.4


DECLARATION = Declaration(
    paper="GMPO 2025",
    arxiv="2507.20673",
    bounded=False,
    needs=("log_mu", "episodes"),
    knob=Knob(field="epsilon", sweep=(0.1, 0.2, 0.4, 0.8)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The episode's mean advantage times the geometric mean of its clipped ratios."""
    log_ratio = items.log_ratio.detach()
    advantage = items.mean_over_episode(items.advantage).expand_as(log_ratio)
    clipped = torch.where(advantage < 0, log_ratio.clamp(min=-config.epsilon), log_ratio.clamp(max=config.epsilon))
    value = items.mean_over_episode(clipped).exp() * advantage
    return with_gradient(value, torch.where(clipped == log_ratio, value, 0.0), items.log_pi)
