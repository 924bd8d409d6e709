"""Ratio clipping that several corrections share, stated as a value and a coefficient per unit of advantage.

Shape letters: B decisions, A action tokens. rho = pi / mu. A baseline multiplies both fields by the advantage; stating
the coefficient apart keeps 0 * inf and halved gradients at ties out of autograd.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from replaybench.maths.shapes import check_shapes

EDGE_TOLERANCE = 1e-9


class ClippedRatio(NamedTuple):
    """The clipped ratio, [B, A], and its derivative by log pi, [B, A]; both detached."""

    value: Tensor
    coefficient: Tensor


def is_inside_clip(ratio_BA: Tensor, advantage_BA: Tensor, *, low: float, high: float) -> Tensor:
    """Returns where a pessimistic clip leaves the ratio alone: rho <= high where A >= 0, rho >= low where A < 0.

    A ratio within 1e-9 of an edge counts as inside, whichever way its last bit fell.
    """
    check_shapes(ratio=(ratio_BA, "BA"), advantage=(advantage_BA, "BA"))
    return torch.where(advantage_BA < 0, ratio_BA >= low - EDGE_TOLERANCE, ratio_BA <= high + EDGE_TOLERANCE)


def clip_ratio(
    log_ratio_BA: Tensor, advantage_BA: Tensor, *, low: float, high: float, ceiling: float = math.inf
) -> ClippedRatio:
    """Clips the ratio on the side where moving further would look like a gain.

    A >= 0: min(rho, high). A < 0: min(max(rho, low), ceiling), where the ceiling is the second clip of dual-clip PPO.
    The value times A is min(rho A, clip(rho, low, high) A), and for A < 0 the larger of that and ceiling A.

    Args:
        log_ratio_BA: [B, A] log pi - log mu.
        advantage_BA: [B, A].
        low: Edge for A < 0.
        high: Edge for A >= 0.
        ceiling: Largest value for A < 0, at least `low`.

    Source: Schulman et al. 2017, eq. 7, arXiv 1707.06347; the ceiling is that of arXiv 1912.09729.
    """
    check_shapes(log_ratio=(log_ratio_BA, "BA"), advantage=(advantage_BA, "BA"))
    ratio = log_ratio_BA.detach().exp()
    is_negative = advantage_BA < 0
    value = torch.where(is_negative, ratio.clamp(min=low, max=ceiling), ratio.clamp(max=high))
    is_inside = is_inside_clip(ratio, advantage_BA, low=low, high=high)
    is_inside &= ~is_negative | (ratio <= ceiling + EDGE_TOLERANCE)
    return ClippedRatio(value, torch.where(is_inside, ratio, 0.0))


def bend_ratio(log_ratio_BA: Tensor, advantage_BA: Tensor, *, low: float, high: float, slope: float) -> ClippedRatio:
    """Replaces the flat part of the clipped ratio by a line through the edge, slope rho + (1 - slope) edge.

    A slope of 0 is the plain clip, a negative one walks back to the band, a small positive one leaks.

    Args:
        log_ratio_BA: [B, A] log pi - log mu.
        advantage_BA: [B, A].
        low: Edge for A < 0.
        high: Edge for A >= 0.
        slope: Slope of the ratio outside, below 1.

    Source: Wang et al. 2019, arXiv 1903.07940, for a negative slope.
    """
    check_shapes(log_ratio=(log_ratio_BA, "BA"), advantage=(advantage_BA, "BA"))
    ratio = log_ratio_BA.detach().exp()
    edge = torch.full_like(ratio, high).masked_fill(advantage_BA < 0, low)
    is_inside = is_inside_clip(ratio, advantage_BA, low=low, high=high)
    value = torch.where(is_inside, ratio, slope * ratio + (1 - slope) * edge)
    return ClippedRatio(value, torch.where(is_inside, ratio, slope * ratio))
