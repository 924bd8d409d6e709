"""SPO: simple policy optimisation, a quadratic penalty in place of the clip (arXiv 2401.16025).

J = rho A - |A| (rho - 1)^2 / (2 epsilon), so c = rho (1 - sgn(A) (rho - 1) / epsilon): beyond rho = 1 + epsilon (A > 0)
or rho = 1 - epsilon (A < 0) it turns negative and pulls the ratio back.
Default: epsilon = 0.2, as in the authors' MuJoCo code.
Squares the ratio: on very stale data c grows like rho^2 / epsilon on both sides (A = 1, l = 2: -229).
Differs: nothing is clamped. A ratio whose square overflows is an error.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob


@dataclass(frozen=True, kw_only=True)
class Config:
    """Distance of the ratio from 1 at which the objective peaks."""

    epsilon: PositiveFloat = 0.2


DECLARATION = Declaration(
    paper="SPO 2024",
    arxiv="2401.16025",
    bounded=False,
    knob=Knob(field="epsilon", sweep=(0.05, 0.1, 0.2, 0.3, 0.4)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio times the advantage, minus a parabola around a ratio of 1."""
    ratio = items.log_ratio.exp()
    return ratio * items.advantage - items.advantage.abs() * (ratio - 1).square() / (2 * config.epsilon)
