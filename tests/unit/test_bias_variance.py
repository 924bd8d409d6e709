"""The exact moments of gradient estimators, and what is compared with what."""

import runpy
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from replaybench.analysis.bias_variance import (
    NUM_SAMPLES,
    Coefficient,
    RankedCell,
    StudyCell,
    StudyRow,
    cell_rows,
    exact_moments,
    lag_cells,
    paper_cells,
    paper_study,
    pareto_frontier,
    ranking,
)
from replaybench.errors import ContractError, NumericalError
from replaybench.paths import ROOT
from replaybench.suites import gridworld

Floats = NDArray[np.float64]


def importance_sampling(log_ratio: Floats, advantage: Floats) -> Floats:
    return np.exp(log_ratio)


def truncated(log_ratio: Floats, advantage: Floats) -> Floats:
    return np.minimum(np.exp(log_ratio), 1.0)


def row(baseline: str, bias2: float, variance: float, *, behaviour: str = "A", n: int = 1) -> StudyRow:
    return StudyRow("PI-1", behaviour, baseline, {}, n, bias2, variance, bias2 + variance)


def example_cell() -> StudyCell:
    return StudyCell(
        target="PI",
        behaviour="mu",
        target_K=np.array([0.5, 0.5]),
        behaviour_K=np.array([0.25, 0.75]),
        advantage_K=np.array([1.0, -1.0]),
        action_index=0,
    )


def distributions(size: int) -> st.SearchStrategy[Floats]:
    weights = st.lists(st.floats(0.05, 1.0), min_size=size, max_size=size)
    return weights.map(lambda values: np.array(values) / np.sum(values))


def test_moments_match_a_hand_computation() -> None:
    """pi = (1/2, 1/2), mu = (1/4, 3/4), A = (1, -1): g = (2 * 1/2, 2/3 * 1/2) has mean 1/2 and variance 1/12."""
    cell = example_cell()
    moments = exact_moments(cell.target_K, cell.behaviour_K, cell.advantage_K, importance_sampling, 0)
    assert moments.mean == pytest.approx(0.5, abs=1e-15)
    assert moments.variance == pytest.approx(1 / 12, abs=1e-15)


@given(distributions(4), distributions(4), st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.integers(0, 3))
def test_importance_sampling_is_unbiased(target: Floats, behaviour: Floats, q: list[float], k: int) -> None:
    """Its mean is the exact derivative pi(k) A(k) of sum_a pi(a) Q(a), whatever the behaviour policy."""
    advantage = np.array(q) - target @ np.array(q)
    moments = exact_moments(target, behaviour, advantage, importance_sampling, k)
    assert moments.mean == pytest.approx(target[k] * advantage[k], abs=1e-12)


def test_the_reference_is_the_policy_gradient_of_the_start_state() -> None:
    """In every cell the mean of importance sampling times the visits of S0 is the exact gradient's entry."""
    mdp = gridworld.paper_2x2()
    for cell in paper_cells():
        target_SK = gridworld.study_targets()[cell.target]
        visits = gridworld.visitation(mdp, target_SK)[0]
        moments = exact_moments(cell.target_K, cell.behaviour_K, cell.advantage_K, importance_sampling, 3)
        assert visits * moments.mean == pytest.approx(gridworld.policy_gradient(mdp, target_SK)[0, 3], abs=1e-12)


@pytest.mark.parametrize("coefficient", [importance_sampling, truncated])
def test_moments_match_sampling(coefficient: Coefficient) -> None:
    """Drawing 400 000 actions and averaging gives the same mean and variance within 5 standard errors."""
    cell = paper_cells()[4]
    exact = exact_moments(cell.target_K, cell.behaviour_K, cell.advantage_K, coefficient, 3)
    actions = np.random.default_rng(0).choice(4, size=400_000, p=cell.behaviour_K)
    ratio = cell.target_K[actions] / cell.behaviour_K[actions]
    if coefficient is truncated:
        ratio = np.where(ratio > 1.0, 1.0, ratio)
    sampled = ratio * cell.advantage_K[actions] * ((actions == 3) - cell.target_K[3])
    squares = (sampled - exact.mean) ** 2
    root_n = np.sqrt(len(actions))
    assert abs(sampled.mean() - exact.mean) < 5 * sampled.std() / root_n
    assert abs(squares.mean() - exact.variance) < 5 * squares.std() / root_n


def test_rows_average_the_variance_and_keep_the_bias() -> None:
    """At n samples bias2 is unchanged, variance is divided by n, and mse is their sum (hand computation)."""
    rows = [r for r in cell_rows(example_cell(), [("truncated", {"cap": 1.0}, truncated)]) if r.baseline == "truncated"]
    assert [r.n for r in rows] == list(NUM_SAMPLES) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    # g = (1 * 1/2, 2/3 * 1/2): mean 3/8 against 1/2, variance 3/16 * (1/2 - 1/3)^2.
    for r in rows:
        assert r.bias2 == pytest.approx(1 / 64, abs=1e-15)
        assert r.variance == pytest.approx(3 / 16 / 36 / r.n, abs=1e-15)
        assert r.mse == r.bias2 + r.variance
        assert r.config == {"cap": 1.0}


def test_the_study_has_21_cells_and_the_zero_estimator() -> None:
    """Each cell holds the given estimators and `zero`, whose mse is the squared reference at any n."""
    rows = paper_study([("is", {}, importance_sampling)], ns=(1, 8))
    assert len(rows) == 21 * 2 * 2
    assert len({(r.target, r.behaviour) for r in rows}) == 21
    for cell in paper_cells():
        reference = exact_moments(cell.target_K, cell.behaviour_K, cell.advantage_K, importance_sampling, 3).mean
        zeros = [r for r in rows if r[:3] == (cell.target, cell.behaviour, "zero")]
        assert [(r.n, r.bias2, r.variance) for r in zeros] == [(1, reference**2, 0.0), (8, reference**2, 0.0)]


def test_a_lag_is_a_number_of_policy_gradient_steps() -> None:
    """All lags share the target; the largest goes back to the uniform policy, and the ratios widen with the lag."""
    cells = lag_cells((1, 8, 64))
    assert [cell.behaviour for cell in cells] == ["lag 1", "lag 8", "lag 64"]
    assert cells[-1].behaviour_K == pytest.approx([0.25] * 4)
    assert all((cell.target_K == cells[0].target_K).all() for cell in cells)
    widths = [np.abs(np.log(cell.target_K / cell.behaviour_K)).max() for cell in cells]
    assert widths == sorted(widths)
    assert widths[0] > 0


@pytest.mark.parametrize("state", [0, 1])
def test_the_documented_example_is_exact_in_an_mdp_of_its_own(state: int) -> None:
    """docs/exact_gradients.py against long-hand arithmetic: V by iteration, the moments as sums over two actions."""
    example = runpy.run_path(str(ROOT / "docs" / "exact_gradients.py"))
    pi_right = float(np.exp(2) / (1 + np.exp(2)))
    value = [0.0, 0.0, 0.0]
    for _ in range(3000):
        q = [[-1 + 0.95 * value[0], -1 + 0.95 * value[1]], [-1 + 0.95 * value[0], 2.0]]
        value = [(1 - pi_right) * left + pi_right * right for left, right in q] + [0.0]
    advantage = [q[state][action] - value[state] for action in (0, 1)]
    score, ratio = [-pi_right, 1 - pi_right], [2 * (1 - pi_right), 2 * pi_right]
    weights = {"importance_sampling": ratio, "tis": [min(r, 1.0) for r in ratio], "no_correction": [1.0, 1.0]}
    exact = sum(0.5 * r * a * s for r, a, s in zip(ratio, advantage, score, strict=True))
    for baseline, weight in weights.items():
        estimates = [w * a * s for w, a, s in zip(weight, advantage, score, strict=True)]
        mean = sum(estimates) / 2
        (found,) = [
            r for r in example["rows"](state) if (r.baseline, r.n) == (baseline, 64) and r.config.get("cap", 1.0) == 1.0
        ]
        assert found.bias2 == pytest.approx((mean - exact) ** 2, abs=1e-15)
        assert found.variance == pytest.approx(sum((e - mean) ** 2 for e in estimates) / 2 / 64)


def test_a_given_zero_estimator_is_not_doubled() -> None:
    """Where the caller brings its own `zero`, that one is used."""
    zero = ("zero", {"mine": True}, lambda log_ratio, advantage: np.zeros_like(log_ratio))
    rows = cell_rows(example_cell(), [zero, ("is", {}, importance_sampling)], ns=(1,))
    assert [(r.baseline, r.config) for r in rows] == [("zero", {"mine": True}), ("is", {})]


def test_the_frontier_holds_what_nothing_dominates() -> None:
    """Of five points by hand: the two ends and a corner stay; one worse on both axes and one worse on one axis go."""
    points = [("a", 0.0, 4.0), ("b", 1.0, 1.0), ("c", 4.0, 0.0), ("worse", 2.0, 2.0), ("half", 1.0, 3.0)]
    assert pareto_frontier([row(*point) for point in points]) == [True, True, True, False, False]


def test_equal_points_share_the_frontier() -> None:
    """Points that differ by rounding do not dominate each other."""
    assert pareto_frontier([row("a", 1.0, 1.0), row("b", 1.0 - 1e-15, 1.0), row("c", 1.0, 1.0)]) == [True] * 3


def test_rounding_does_not_save_a_dominated_point() -> None:
    """A rival with half the variance dominates, although rounding makes its bias2 the larger one."""
    assert pareto_frontier([row("a", 1.0, 1.0), row("b", 1.0 + 1e-15, 0.5)]) == [False, True]


def test_cells_are_compared_apart() -> None:
    """A point of another behaviour policy or another n dominates nothing here."""
    rows = [row("a", 1.0, 1.0), row("b", 0.5, 0.5, behaviour="B"), row("c", 0.5, 0.5, n=2)]
    assert pareto_frontier(rows) == [True] * 3


def test_the_ranking_orders_by_mse_and_shares_ranks() -> None:
    """By hand: mse 1, 2, 2 (up to rounding), 3 get the ranks 1, 2, 2, 4, in each cell on its own."""
    cell_a = [row("d", 3.0, 0.0), row("zero", 2.0, 0.0), row("b", 1.0, 1.0 + 1e-15), row("a", 0.5, 0.5)]
    cell_b = [row("d", 0.0, 1.0, n=2), row("zero", 2.0, 0.0, n=2)]
    ranked = ranking([*cell_a, *cell_b])
    assert list(ranked) == [RankedCell("PI-1", "A", 1), RankedCell("PI-1", "A", 2)]
    first, second = ranked.values()
    assert [(r.rank, r.row.baseline) for r in first] == [(1, "a"), (2, "zero"), (2, "b"), (4, "d")]
    assert [(r.rank, r.row.baseline) for r in second] == [(1, "d"), (2, "zero")]


def test_a_ranking_without_the_zero_estimator_is_refused() -> None:
    """Shrinking to nothing must be among what is ranked, in every cell."""
    with pytest.raises(ContractError, match="zero"):
        ranking([row("zero", 1.0, 0.0), row("a", 1.0, 0.0), row("a", 1.0, 0.0, behaviour="B")])


@pytest.mark.parametrize(
    ("target", "behaviour"), [([0.5, 0.5], [1.0, 0.0]), ([1.0, 0.0], [0.5, 0.5]), ([0.5, 0.5], [0.2, 0.3, 0.5])]
)
def test_policies_without_a_log_ratio_are_refused(target: Sequence[float], behaviour: Sequence[float]) -> None:
    """Every action needs a positive probability under both policies of equal size."""
    with pytest.raises(ContractError):
        exact_moments(np.array(target), np.array(behaviour), np.array([1.0, -1.0]), importance_sampling, 0)


def test_an_estimator_that_overflows_is_an_error() -> None:
    """A coefficient that is not finite does not become a number in a table."""
    cell = example_cell()
    with pytest.raises(NumericalError, match="not finite"):
        exact_moments(cell.target_K, cell.behaviour_K, cell.advantage_K, lambda ratio, _: ratio * np.inf, 0)


def test_the_analysis_does_not_load_torch() -> None:
    """Reading and ranking rows costs no import of the learner's libraries."""
    code = "import sys, replaybench.analysis.bias_variance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
