"""What the theory of a bounded trust weight promises, measured: bound, concentration, the gradient that is left.

For the weight exp(-l^2 / (2 sigma^2)) the coefficient c = exp(l - l^2 / (2 sigma^2)) peaks at l = sigma^2 with
e^(sigma^2 / 2), so that one sample of the gradient is bounded by M = e^(sigma^2 / 2) max |A s| (s the score entry) and
the average of N concentrates around its own mean, which is not the gradient: no such bound controls the bias.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replaybench.analysis.bias_variance import Coefficient, StudyCell, sample_values

Floats = NDArray[np.float64]
# c(l) at an advantage.
Curve = Callable[[Floats, float], Floats]

NEAR_ZERO = 1e-3
# Fine enough that the grid misses a peak of curvature 1 / sigma^2 by less than 1e-6 of it at sigma >= 0.1.
GRID_STEP = 1.25e-4
PEAK_GRID: Floats = np.arange(-48_000.0, 48_001.0) * GRID_STEP


class Peak(NamedTuple):
    """The largest coefficient found on the grid, where it is, and the bound."""

    sigma: float
    log_ratio: float
    coefficient: float
    bound: float


class Concentration(NamedTuple):
    """How far the average of n samples strays, in quantiles over repetitions at the same confidence as the bounds.

    deviation is around the estimator's own mean, error around the true gradient; bias is the distance of the two.
    """

    n: int
    deviation: float
    error: float
    hoeffding: float
    bernstein: float
    bias: float


class GradientLeft(NamedTuple):
    """Shares of the four items (+-l, +-A) whose coefficient is not zero, and at least NEAR_ZERO, at a distance |l|."""

    distance: float
    nonzero: float
    above_threshold: float


def update_bound(sigma: float) -> float:
    """Returns e^(sigma^2 / 2), the largest coefficient of the Gaussian trust weight."""
    return math.exp(sigma**2 / 2)


def peak(sigma: float, curve: Curve) -> Peak:
    """Finds the largest coefficient for A = 1 on a fine grid."""
    values = curve(PEAK_GRID, 1.0)
    top = int(np.argmax(values))
    return Peak(sigma, float(PEAK_GRID[top]), float(values[top]), update_bound(sigma))


def concentration(
    cell: StudyCell,
    coefficient: Coefficient,
    bound: float,
    ns: Sequence[int],
    repetitions: int,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
) -> list[Concentration]:
    """Compares averages of n samples with the bounds of Hoeffding and Bernstein for values in [-M, M].

    Hoeffding: t = M sqrt(2 L / n). Bernstein: t solves n t^2 = 2 L (V + 2 M t / 3). L = ln(2 / (1 - confidence)).

    Args:
        bound: Largest coefficient, so that M = bound * max |A s|.
        repetitions: Averages drawn of each n, by `rng`.

    Source: Hoeffding 1963, theorem 2; Bernstein's inequality as in Boucheron, Lugosi and Massart 2013, section 2.8.
    """
    values_K, exact = sample_values(cell, coefficient)
    ones_K, _ = sample_values(cell, lambda log_ratio, advantage: np.ones_like(log_ratio))
    largest = bound * float(np.abs(ones_K).max())
    mean = float(cell.behaviour_K @ values_K)
    variance = float(cell.behaviour_K @ (values_K - mean) ** 2)
    log_term = math.log(2 / (1 - confidence))
    found = []
    for n in ns:
        averages = rng.multinomial(n, cell.behaviour_K, size=repetitions) @ values_K / n
        linear = 2 * largest * log_term / (3 * n)
        found.append(
            Concentration(
                n=n,
                deviation=float(np.quantile(np.abs(averages - mean), confidence)),
                error=float(np.quantile(np.abs(averages - exact), confidence)),
                hoeffding=largest * math.sqrt(2 * log_term / n),
                bernstein=linear + math.sqrt(linear**2 + 2 * variance * log_term / n),
                bias=abs(mean - exact),
            )
        )
    return found


def gradient_left(curve: Curve, distances: Floats) -> list[GradientLeft]:
    """Returns which share of the items keeps a gradient at each distance |l| > 0, counting both signs of l and A."""
    size_SD = np.abs([curve(sign * distances, advantage) for sign in (1.0, -1.0) for advantage in (1.0, -1.0)])
    nonzero, above = (size_SD > 0).mean(0), (size_SD >= NEAR_ZERO).mean(0)
    return [GradientLeft(*row) for row in zip(distances.tolist(), nonzero.tolist(), above.tolist(), strict=True)]
