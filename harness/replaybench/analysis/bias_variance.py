"""Exact bias and variance of off-policy gradient estimators on the 2x2 grid, for any number of samples.

One action is drawn from the behaviour policy mu in state S0; the estimator of one entry of the policy gradient is
    g(a) = c(l, A) A(S0, a) d log pi(a|S0) / d theta[S0, action_index],   l = log pi(a|S0) - log mu(a|S0),
with the gradient coefficient c of a baseline. Expectations are sums over the K actions, nothing is sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ContractError, NumericalError

Floats = NDArray[np.float64]
Coefficient = Callable[[Floats, Floats], Floats]
Estimator = tuple[str, dict[str, Any], Coefficient]

NUM_SAMPLES = tuple(2**power for power in range(13))
ZERO = "zero"
# Equal by algebra is rarely equal in floating point: a difference counts from this share of the cell's largest number.
RELATIVE_TOLERANCE = 1e-12


class Moments(NamedTuple):
    """Mean and variance of the estimator from a single sample."""

    mean: float
    variance: float


class StudyRow(NamedTuple):
    """One estimator in one cell, averaged over n samples.

    `bias2` is the squared distance of its mean from that of plain importance sampling, `variance` is that of the
    average (single-sample variance / n), and mse = bias2 + variance.
    """

    target: str
    behaviour: str
    baseline: str
    config: dict[str, Any]
    n: int
    bias2: float
    variance: float
    mse: float


class RankedRow(NamedTuple):
    """A row and its rank by mse in its cell, 1 the best; equal rows share the better rank."""

    rank: int
    row: StudyRow


class RankedCell(NamedTuple):
    """What is compared with each other: one target, one behaviour policy, one number of samples."""

    target: str
    behaviour: str
    n: int


@dataclass(frozen=True, kw_only=True)
class StudyCell:
    """One pair of a target and a behaviour policy in one state.

    Args:
        target: Name of the target policy.
        behaviour: Name of the behaviour policy.
        target_K: [K] its probabilities pi(a|S0), all positive.
        behaviour_K: [K] mu(a|S0), all positive.
        advantage_K: [K] exact advantages of the target policy.
        action_index: The logit whose gradient entry is estimated.
    """

    target: str
    behaviour: str
    target_K: Floats
    behaviour_K: Floats
    advantage_K: Floats
    action_index: int


def exact_moments(
    target_K: Floats, behaviour_K: Floats, advantage_K: Floats, coefficient: Coefficient, action_index: int
) -> Moments:
    """Returns mean and variance of g(a), a ~ mu, summed over all actions.

    d log pi(a) / d theta[k] = 1[a = k] - pi(k) for a softmax policy.

    Args:
        target_K: [K] pi(a), positive.
        behaviour_K: [K] mu(a), positive.
        advantage_K: [K] A(a).
        coefficient: Maps log-ratios [K] and advantages [K] to gradient coefficients c [K].
        action_index: k, the logit whose gradient entry is estimated.

    Raises:
        ContractError: Shapes differ, or a probability is not positive.
        NumericalError: The estimator is not finite for an action.
    """
    if not target_K.shape == behaviour_K.shape == advantage_K.shape:
        shapes = (target_K.shape, behaviour_K.shape, advantage_K.shape)
        raise ContractError(f"target, behaviour, advantage have shapes {shapes}, expected [K] each.")
    if (target_K <= 0).any() or (behaviour_K <= 0).any():
        raise ContractError("The log-ratio needs positive probabilities under the target and the behaviour policy.")
    log_ratio_K = np.log(target_K) - np.log(behaviour_K)
    score_K = np.eye(len(target_K))[action_index] - target_K[action_index]
    estimate_K = coefficient(log_ratio_K, advantage_K) * advantage_K * score_K
    if not np.isfinite(estimate_K).all():
        raise NumericalError(f"The estimator is not finite: {estimate_K} at log-ratios {log_ratio_K}.")
    mean = float(behaviour_K @ estimate_K)
    return Moments(mean, float(behaviour_K @ (estimate_K - mean) ** 2))


def paper_study(estimators: Sequence[Estimator], ns: Sequence[int] = NUM_SAMPLES) -> list[StudyRow]:
    """Returns the rows of all estimators in the 21 cells of the published study, at each number of samples.

    Source: the analytic study of GIPO, arXiv 2603.03955.
    Differs: any number of samples instead of one; the estimator that is always zero takes part.
    """
    return [row for cell in paper_cells() for row in cell_rows(cell, estimators, ns)]


def paper_cells() -> list[StudyCell]:
    """Returns the 3 targets x 7 behaviours of the published study, for the logit of `right` in the start state."""
    # Imported here because the suites load torch, which reading tables must not cost.
    from replaybench.suites import gridworld

    mdp = gridworld.paper_2x2()
    cells = []
    for target, target_SK in gridworld.study_targets().items():
        advantage_SK = gridworld.advantages(mdp, target_SK)
        for behaviour, behaviour_SK in gridworld.study_behaviours(target_SK).items():
            cell = StudyCell(
                target=target,
                behaviour=behaviour,
                target_K=target_SK[0],
                behaviour_K=behaviour_SK[0],
                advantage_K=advantage_SK[0],
                action_index=gridworld.ACTIONS.index("right"),
            )
            cells.append(cell)
    return cells


def cell_rows(cell: StudyCell, estimators: Sequence[Estimator], ns: Sequence[int] = NUM_SAMPLES) -> list[StudyRow]:
    """Returns the rows of one cell; the estimator `zero` is added where it is not among the given ones.

    An estimator that is always zero has no variance: without it in the ranking, shrinking looks like correcting.
    """
    reference = _cell_moments(cell, _importance_sampling).mean
    if ZERO not in {name for name, _, _ in estimators}:
        estimators = [*estimators, (ZERO, {}, _no_gradient)]
    rows = []
    for name, config, coefficient in estimators:
        moments = _cell_moments(cell, coefficient)
        bias2 = (moments.mean - reference) ** 2
        for n in ns:
            variance = moments.variance / n
            rows.append(StudyRow(cell.target, cell.behaviour, name, config, n, bias2, variance, bias2 + variance))
    return rows


def pareto_frontier(rows: Sequence[StudyRow]) -> list[bool]:
    """Returns for each row whether no row of its cell has less bias2 or variance without more of the other.

    Rows are compared within the same target, behaviour and n only.
    """
    cells = _by_cell(rows)
    return [not any(_dominates(rival, row, cells[_cell_of(row)]) for rival in cells[_cell_of(row)]) for row in rows]


def ranking(rows: Sequence[StudyRow]) -> dict[RankedCell, list[RankedRow]]:
    """Returns the rows of each cell in the order of their mse, the zero estimator among them.

    Raises:
        ContractError: A cell has no row of the zero estimator.
    """
    ranked = {}
    for cell, members in _by_cell(rows).items():
        if ZERO not in {row.baseline for row in members}:
            raise ContractError(f"Cell {tuple(cell)} has no row '{ZERO}'; rank the rows of a whole study.")
        margin = RELATIVE_TOLERANCE * max(row.mse for row in members)
        ranked[cell] = [
            RankedRow(1 + sum(rival.mse < row.mse - margin for rival in members), row)
            for row in sorted(members, key=lambda row: row.mse)
        ]
    return ranked


def _importance_sampling(log_ratio: Floats, advantage: Floats) -> Floats:
    return np.exp(log_ratio)


def _no_gradient(log_ratio: Floats, advantage: Floats) -> Floats:
    return np.zeros_like(log_ratio)


def _cell_moments(cell: StudyCell, coefficient: Coefficient) -> Moments:
    return exact_moments(cell.target_K, cell.behaviour_K, cell.advantage_K, coefficient, cell.action_index)


def _cell_of(row: StudyRow) -> RankedCell:
    return RankedCell(row.target, row.behaviour, row.n)


def _by_cell(rows: Sequence[StudyRow]) -> dict[RankedCell, list[StudyRow]]:
    cells: dict[RankedCell, list[StudyRow]] = {}
    for row in rows:
        cells.setdefault(_cell_of(row), []).append(row)
    return cells


def _dominates(rival: StudyRow, row: StudyRow, members: Sequence[StudyRow]) -> bool:
    """Returns whether `rival` is better on one axis and not worse on the other, beyond rounding."""
    margin = RELATIVE_TOLERANCE * max(member.mse for member in members)
    gains = (row.bias2 - rival.bias2, row.variance - rival.variance)
    return min(gains) >= -margin and max(gains) > margin
