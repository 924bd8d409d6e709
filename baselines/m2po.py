"""M2PO: the batch's second moment of the log-ratio is held below a threshold (arXiv 2510.01161, algorithm 1).

J = 1[kept] rho A, so c = rho where kept and 0 elsewhere. Harmful items are those that have already moved with their
advantage (A > 0 and l > 0, or A < 0 and l < 0); the harmful ones with the largest l^2 are dropped until the mean l^2
of the rest is at most the threshold. All other items are kept at any ratio, so c is unbounded.
Default: threshold = 0.04, the paper's and that of every public code.
Differs: items that tie with the first dropped one are dropped with it, so that the order of a batch does not matter.
Trinity-RFT's coding of algorithm 1 is followed, without its clamp of l to [-20, 20]; the authors' repository turns
the threshold into PPO's clip bounds instead, and AReaL counts all items against a proximal policy. Dropped items
still count in the mean, as in the paper.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest mean of the squared log-ratio among the harmful items that are kept."""

    threshold: PositiveFloat = 0.04


DECLARATION = Declaration(
    paper="M2PO 2025",
    arxiv="2510.01161",
    bounded=False,
    knob=Knob(field="threshold", sweep=(0.01, 0.02, 0.04, 0.1, 0.4)),
    batch_statistics=True,
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio, or 0 where dropped, times the advantage."""
    log_ratio = items.log_ratio.detach()
    is_kept = _is_kept(log_ratio, items.advantage, items.mask, config.threshold)
    score = torch.where(is_kept, log_ratio.exp(), 0.0) * items.advantage
    return with_gradient(score, score, items.log_pi)


def _is_kept(log_ratio: Tensor, advantage: Tensor, mask: Tensor, threshold: float) -> Tensor:
    square = log_ratio.square()
    is_harmful = mask & (advantage.sign() * log_ratio.sign() > 0)
    ascending = square[is_harmful].sort().values
    means = ascending.cumsum(0) / torch.arange(1, len(ascending) + 1, dtype=square.dtype, device=square.device)
    num_kept = int((means <= threshold).sum())
    if num_kept == len(ascending):
        return torch.ones_like(is_harmful)
    return ~is_harmful | (square < ascending[num_kept])
