"""The theory of a bounded trust weight, against closed forms and hand computations."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from replaybench.analysis.bias_variance import StudyCell
from replaybench.analysis.theory import concentration, gradient_left, peak, update_bound
from replaybench.baseline import load_baseline
from replaybench.report.theory import measured_theory, theory_words
from replaybench.study import curve_of

Floats = NDArray[np.float64]


def coin() -> StudyCell:
    """Two actions, each with probability 1/2 under mu = pi, A = +1 and -1: with c = 1 both samples are 1/2."""
    half = np.array([0.5, 0.5])
    return StudyCell(
        target="pi", behaviour="mu", target_K=half, behaviour_K=half, advantage_K=np.array([1.0, -1.0]), action_index=0
    )


def only_good(log_ratio: Floats, advantage: Floats) -> Floats:
    return (advantage > 0).astype(np.float64)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_the_largest_coefficient_is_the_bound_at_sigma_squared(sigma: float) -> None:
    """The baseline file in float64 peaks at l = sigma^2 with e^(sigma^2 / 2)."""
    baseline = load_baseline("gipo")
    found = peak(sigma, curve_of(baseline, baseline.config({"sigma": sigma}), torch.float64))
    assert found.log_ratio == pytest.approx(sigma**2, abs=1e-3)
    assert found.coefficient == pytest.approx(update_bound(sigma), rel=1e-6)


def test_averages_concentrate_around_a_biased_mean() -> None:
    """Samples are 1/2 or 0 with mean 1/4, where the gradient is 1/2: at n = 1 each strays by 1/4 from its mean."""
    first, last = concentration(coin(), only_good, 1.0, (1, 10_000), 500, np.random.default_rng(0))
    assert (first.deviation, first.error, first.bias) == (0.25, 0.5, 0.25)
    # The normal quantile of a binomial share of 10,000, times 1/2.
    assert last.deviation == pytest.approx(0.5 * 1.96 * 0.5 / 100, rel=0.15)
    assert last.error == pytest.approx(0.25, abs=0.01)


def test_the_bounds_are_those_of_the_inequalities() -> None:
    """M = 1/2, V = 1/16, L = ln 40, by hand; Bernstein's t satisfies its own equation."""
    (row,) = concentration(coin(), only_good, 1.0, (100,), 10, np.random.default_rng(0))
    log_term = math.log(40)
    assert row.hoeffding == pytest.approx(0.5 * math.sqrt(2 * log_term / 100))
    t = row.bernstein
    assert 100 * t**2 == pytest.approx(2 * log_term * (1 / 16 + 2 * 0.5 * t / 3))


def test_a_larger_range_loosens_the_bounds_and_not_the_samples() -> None:
    """Doubling the bound on the coefficient doubles Hoeffding's distance."""
    one, two = (concentration(coin(), only_good, b, (64,), 50, np.random.default_rng(1))[0] for b in (1.0, 2.0))
    assert two.hoeffding == 2 * one.hoeffding
    assert two.deviation == one.deviation


def test_a_clip_keeps_half_of_the_items_at_any_distance() -> None:
    """Outside the band PPO-clip keeps what moves back: one sign of A on each side, by hand; inside, all four."""
    baseline = load_baseline("ppo_clip")
    curve = curve_of(baseline, baseline.config({"epsilon": 0.2}), torch.float32)
    near, far, farthest = gradient_left(curve, np.array([0.1, 1.0, 20.0]))
    assert (near.nonzero, far.nonzero, farthest.nonzero) == (1.0, 0.5, 0.5)
    # At l = -20 the ratio itself, 2e-9, is below the threshold.
    assert farthest.above_threshold == 0.25


def test_a_smooth_weight_ends_in_float32() -> None:
    """exp(l - l^2 / (2 * 0.2^2)) is below 1.4e-45 / 2, half of float32's least positive number, from |l| = 3 on."""
    baseline = load_baseline("gipo")
    config = baseline.config({"sigma": 0.2})
    assert gradient_left(curve_of(baseline, config, torch.float32), np.array([3.2]))[0].nonzero == 0.0
    assert gradient_left(curve_of(baseline, config, torch.float64), np.array([3.2]))[0].nonzero == 1.0
    assert gradient_left(curve_of(baseline, config, torch.float32), np.array([2.5]))[0].nonzero == 1.0


def test_the_words_hold_what_was_measured() -> None:
    """No bound is exceeded on the published cell, and the sentences say so from the table."""
    theory = measured_theory()
    assert (theory.concentration["deviation"] <= theory.concentration["hoeffding"]).all()
    words = theory_words(theory)
    assert "it exceeds it at 0 of 5 widths" in words[0]
    assert "exceeds a bound in 0 of 52 comparisons" in words[1]
    assert "ppo_clip, epsilon 0.2 50%" in words[2]
