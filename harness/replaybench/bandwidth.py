"""How wide a correction lets off-policy items through, and the setting at which two corrections are equally wide.

Comparing GIPO at sigma = 1 with PPO-clip at epsilon = 0.2 confounds the width of a trust weight with its shape. The
weight is w(l) = c(l) / rho, relative to plain importance sampling; its half-weight log-ratio is where w first falls to
1/2, walking away from l = 0 in the direction in which a correction acts: up for A > 0, down for A < 0.
In closed form the upper one is ln(1 + epsilon) for PPO-clip, ln(2 cap) for TIS, ln(1 + 1.763 / tau) for SAPO and
1.177 sigma for GIPO.
"""

import math
from typing import Any, Literal

import torch

from replaybench.baseline import Baseline, gradient_coefficient
from replaybench.errors import ConfigError

Side = Literal["upper", "lower"]

WIDEST = 20.0
GRID = 65
REFINEMENTS = 7
KNOB_LOW, KNOB_HIGH = 1e-4, 1e4
HALVINGS = 60
TOLERANCE = 1e-6


def half_weight(baseline: Baseline, config: Any, side: Side = "upper") -> float | None:
    """Returns the half-weight log-ratio of a correction: at least 0 above, at most 0 below; None if w never halves.

    Args:
        side: "upper" walks towards l = +20 with A > 0, "lower" towards l = -20 with A < 0.

    Raises:
        ConfigError: The correction reads more than an item's log-ratio and advantage.
    """
    sign = 1.0 if side == "upper" else -1.0
    low, high = 0.0, WIDEST
    for _ in range(REFINEMENTS):
        distance = torch.linspace(low, high, GRID, dtype=torch.float64)
        coefficient = gradient_coefficient(baseline, config, sign * distance, sign)
        halved = (coefficient * torch.exp(-sign * distance) <= 0.5).nonzero()
        if not len(halved):
            return None
        first = int(halved[0])
        if first == 0:
            return sign * float(distance[0])
        low, high = float(distance[first - 1]), float(distance[first])
    return sign * high


def matched_knob(baseline: Baseline, upper: float) -> tuple[str, float]:
    """Returns the knob and its value that put the upper half-weight log-ratio at `upper` nats, other fields default.

    Raises:
        ConfigError: The baseline has no knob, or no value of it from 1e-4 to 1e4 is that wide.
    """
    knob = baseline.declaration.knob
    if knob is None or baseline.declaration.why_no_curve is not None:
        reason = baseline.declaration.why_no_curve or "has no knob"
        raise ConfigError(f"Baseline '{baseline.name}' {reason}; its width cannot be matched.")

    def width(log_knob: float) -> float:
        found = half_weight(baseline, baseline.config({knob.field: math.exp(log_knob)}))
        return math.inf if found is None else found

    narrow, wide = math.log(KNOB_LOW), math.log(KNOB_HIGH)
    if not knob.wider:
        narrow, wide = wide, narrow
    for _ in range(HALVINGS):
        middle = (narrow + wide) / 2
        narrow, wide = (middle, wide) if width(middle) < upper else (narrow, middle)
    if abs(width(wide) - upper) > TOLERANCE * max(1.0, upper):
        raise ConfigError(
            f"Baseline '{baseline.name}': no {knob.field} from {KNOB_LOW:g} to {KNOB_HIGH:g} puts the upper "
            f"half-weight log-ratio at {upper:g}. Choose another width."
        )
    return knob.field, math.exp(wide)
