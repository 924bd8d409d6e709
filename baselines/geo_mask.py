"""Geometric-mean rejection: episodes far from the policy are dropped, the others count in full.

J = 1[1 / band <= s <= band] A log pi with s = exp(mean of l over the episode's items), so c is 1 or 0.
Default: band = 1.001, verl's preset, whose lower edge is 0.999 and not 1 / 1.001; prime-rl keeps [0.1, 10].
No arXiv id: it is known from public trainers (verl's geometric rejection sampling, prime-rl).
Differs: the sequence is the items of a logged episode. Items of a dropped episode still count in the mean. The default
was set for the mismatch of two inference engines, and drops nearly everything once the policy has learnt.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest factor between 1 and the geometric-mean ratio of an episode that is kept."""

    band: Annotated[float, Field(gt=1)] = 1.001


DECLARATION = Declaration(
    paper="public trainers",
    bounded=True,
    needs=("log_mu", "episodes"),
    knob=Knob(field="band", sweep=(1.001, 1.01, 1.1, 2.0, 10.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The advantage times the log-probability, or 0 in an episode that is dropped."""
    is_kept = items.mean_over_episode(items.log_ratio.detach()).abs() <= math.log(config.band)
    return is_kept * items.advantage * items.log_pi
