"""Sequence-level truncated importance sampling: one truncated ratio for a whole episode.

J = sg[min(W, cap)] A log pi with W = exp(sum of l over the episode's items), so c = min(W, cap).
Default: cap = 2.0, verl's.
No arXiv id: it is known from public trainers (verl, TRL, NeMo-RL) that correct the mismatch of two inference engines.
Differs: the sequence is the items of a logged episode, hundreds of them, so that W is 0 or above the cap almost always
once the policy has moved.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Largest episode ratio that is let through."""

    # A smaller cap would also shrink the weight of fresh data.
    cap: Annotated[float, Field(ge=1)] = 2.0


DECLARATION = Declaration(
    paper="public trainers",
    bounded=True,
    needs=("log_mu", "episodes"),
    knob=Knob(field="cap", sweep=(1.0, 2.0, 5.0, 10.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The detached episode ratio, truncated from above, times the advantage and the log-probability."""
    weight = items.over_episode(items.log_ratio.detach()).exp().clamp(max=config.cap)
    return weight * items.advantage * items.log_pi
