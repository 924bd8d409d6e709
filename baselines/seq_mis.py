"""Sequence-level masked importance sampling: an episode whose ratio is too large is dropped.

J = sg[W 1[W <= cap]] A log pi with W = exp(sum of l over the episode's items), so c = W up to the cap and 0 above.
Default: cap = 3.0, TRL's.
No arXiv id: it is known from public trainers (TRL's sequence mask, verl, NeMo-RL).
Differs: the sequence is the items of a logged episode. Items of a dropped episode still count in the mean.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest episode ratio that is kept."""

    # A smaller cap would drop fresh data too.
    cap: Annotated[float, Field(ge=1)] = 3.0


DECLARATION = Declaration(
    paper="public trainers",
    bounded=True,
    needs=("log_mu", "episodes"),
    knob=Knob(field="cap", sweep=(1.0, 2.0, 3.0, 5.0, 10.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached episode ratio, or 0 above the cap, times the advantage and the log-probability."""
    log_ratio = items.over_episode(items.log_ratio.detach())
    weight = torch.where(log_ratio <= math.log(config.cap), log_ratio.exp(), 0.0)
    return weight * items.advantage * items.log_pi
