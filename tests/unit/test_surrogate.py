"""Tests of the shared clipping against autograd of the objective as it is printed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from replaybench.maths.surrogate import bend_ratio, clip_ratio, is_inside_clip

LOW, HIGH, CEILING = 0.8, 1.28, 3.0
# No ratio among them is an edge, where autograd of the naive form is ambiguous.
LOG_RATIO = torch.tensor([[-3.0, -0.5, -0.1], [0.0, 0.1, 0.26], [0.5, 1.2, 3.0]], dtype=torch.float64)


def naive_value_and_score(log_ratio: Tensor, advantage: Tensor, ceiling: float | None) -> tuple[Tensor, Tensor]:
    """min(rho A, clip(rho) A), then max(., ceiling A) where A < 0, and its gradient by autograd."""
    leaf = log_ratio.clone().requires_grad_()
    ratio = leaf.exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(LOW, HIGH) * advantage)
    if ceiling is not None:
        objective = torch.where(advantage < 0, torch.maximum(objective, ceiling * advantage), objective)
    (score,) = torch.autograd.grad(objective.sum(), leaf)
    return objective.detach(), score


@settings(max_examples=30, deadline=None)
@given(size=st.floats(0.01, 50), sign=st.sampled_from([1.0, -1.0]), ceiling=st.sampled_from([None, CEILING]))
def test_clip_equals_autograd_of_the_printed_objective(size: float, sign: float, ceiling: float | None) -> None:
    """Value and coefficient times A are the naive form's value and gradient, with and without the ceiling."""
    advantage = torch.full_like(LOG_RATIO, sign * size)
    value, score = naive_value_and_score(LOG_RATIO, advantage, ceiling)
    bounds = {} if ceiling is None else {"ceiling": ceiling}
    clipped = clip_ratio(LOG_RATIO, advantage, low=LOW, high=HIGH, **bounds)
    torch.testing.assert_close(clipped.value * advantage, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(clipped.coefficient * advantage, score, rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(advantage=st.sampled_from([2.0, -0.5]), slope=st.sampled_from([-0.3, -0.02, 0.01, 0.5]))
def test_bent_ratio_equals_autograd_of_the_printed_objective(advantage: float, slope: float) -> None:
    """min(rho A, clip(rho, line through low, line through high) A), value and gradient, for slopes of both signs."""
    adv = torch.full_like(LOG_RATIO, advantage)
    leaf = LOG_RATIO.clone().requires_grad_()
    ratio = leaf.exp()
    above = torch.where(ratio > HIGH, slope * ratio + (1 - slope) * HIGH, ratio)
    bent_naively = torch.where(ratio < LOW, slope * ratio + (1 - slope) * LOW, above)
    objective = torch.minimum(ratio * adv, bent_naively * adv)
    (score,) = torch.autograd.grad(objective.sum(), leaf)
    bent = bend_ratio(LOG_RATIO, adv, low=LOW, high=HIGH, slope=slope)
    torch.testing.assert_close(bent.value * adv, objective.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(bent.coefficient * adv, score, rtol=1e-12, atol=0)


def test_only_the_harmful_side_is_outside() -> None:
    """By hand: at rho = 0.5 and 2 a positive advantage leaves the band above only, a negative one below only."""
    ratio = torch.tensor([[0.5, 1.0, 2.0]])
    up = is_inside_clip(ratio, torch.ones_like(ratio), low=LOW, high=HIGH)
    down = is_inside_clip(ratio, -torch.ones_like(ratio), low=LOW, high=HIGH)
    assert up.tolist() == [[True, True, False]]
    assert down.tolist() == [[False, True, True]]


def test_a_ratio_on_an_edge_counts_as_inside() -> None:
    """Edges belong to the band, also when the last bits of exp and log fell outside it."""
    for nudge in (-1e-10, 0.0, 1e-10):
        edges = torch.tensor([[HIGH, LOW, CEILING]], dtype=torch.float64).log() + nudge
        clipped = clip_ratio(
            edges, torch.tensor([[1.0, -1.0, -1.0]], dtype=torch.float64), low=LOW, high=HIGH, ceiling=CEILING
        )
        torch.testing.assert_close(clipped.coefficient, edges.exp(), rtol=1e-12, atol=0)


def test_clipped_items_stay_finite_where_the_ratio_overflows() -> None:
    """At l = 1000, e^l is infinite: the clipped side gives the edge and 0, the ceiling bounds the other side."""
    far = torch.full((1, 2), 1e3)
    clipped = clip_ratio(far, torch.tensor([[1.0, -1.0]]), low=LOW, high=HIGH, ceiling=CEILING)
    torch.testing.assert_close(clipped.value, torch.tensor([[HIGH, CEILING]]))
    assert clipped.coefficient.tolist() == [[0.0, 0.0]]


def test_nothing_carries_a_gradient() -> None:
    """Value and coefficient are detached, so that a baseline alone decides what is differentiated."""
    leaf = LOG_RATIO.clone().requires_grad_()
    advantage = torch.ones_like(LOG_RATIO)
    clipped = clip_ratio(leaf, advantage, low=LOW, high=HIGH)
    bent = bend_ratio(leaf, advantage, low=LOW, high=HIGH, slope=-0.3)
    assert not any(tensor.requires_grad for tensor in (*clipped, *bent))
