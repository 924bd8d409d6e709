"""Zero: the control that never updates the policy.

J = 0 with zero gradient, c = 0. A method that does worse than this would better have left the policy alone.
No arXiv id: it is a control, not a method.
Differs: nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from replaybench.baseline import Declaration, Items, with_gradient


@dataclass(frozen=True, kw_only=True)
class Config:
    """The control has no parameters."""


DECLARATION = Declaration(paper="control", bounded=True, needs=(), updates_policy=False)


def surrogate(items: Items, config: Config) -> Tensor:
    """Zero for every item, with a gradient of zero."""
    zero = torch.zeros_like(items.log_pi)
    return with_gradient(zero, zero, items.log_pi)
