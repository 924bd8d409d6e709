"""Exact bias and variance of off-policy gradient estimators in a finite MDP, for any number of samples.

One action is drawn from the behaviour policy mu in a state s; the estimator of one entry of the policy gradient is
    g(a) = c(l, A) A(s, a) d log pi(a|s) / d theta[s, action_index],   l = log pi(a|s) - log mu(a|s),
with the gradient coefficient c of a baseline. Expectations are sums over the K actions, nothing is sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ContractError, NumericalError

if TYPE_CHECKING:
    from replaybench.suites.gridworld import FiniteMDP

Floats = NDArray[np.float64]
Coefficient = Callable[[Floats, Floats], Floats]
Estimator = tuple[str, dict[str, Any], Coefficient]

NUM_SAMPLES = tuple(2**power for power in range(13))
LAGS = (1, 2, 4, 8, 16, 32, 64)
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
    estimate_K = _estimates(target_K, behaviour_K, advantage_K, coefficient, action_index)
    mean = float(behaviour_K @ estimate_K)
    return Moments(mean, float(behaviour_K @ (estimate_K - mean) ** 2))


def sample_values(cell: StudyCell, coefficient: Coefficient) -> tuple[Floats, float]:
    """Returns g(a) of every action [K] in a cell, and the gradient entry that it estimates."""
    parts = (cell.target_K, cell.behaviour_K, cell.advantage_K)
    exact = exact_moments(*parts, _importance_sampling, cell.action_index).mean
    return _estimates(*parts, coefficient, cell.action_index), exact


def _estimates(
    target_K: Floats, behaviour_K: Floats, advantage_K: Floats, coefficient: Coefficient, action_index: int
) -> Floats:
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
    return np.asarray(estimate_K, np.float64)


def paper_study(estimators: Sequence[Estimator], ns: Sequence[int] = NUM_SAMPLES) -> list[StudyRow]:
    """Returns the rows of all estimators in the 21 cells of the published study, at each number of samples.

    Source: the analytic study of GIPO, arXiv 2603.03955.
    Differs: any number of samples instead of one; the estimator that is always zero takes part.
    """
    cells = paper_cells()
    log_ratio = np.concatenate([np.log(cell.target_K) - np.log(cell.behaviour_K) for cell in cells])
    advantage = np.concatenate([cell.advantage_K for cell in cells])
    bounds = np.cumsum([len(cell.target_K) for cell in cells])[:-1]
    of_cells: list[list[Estimator]] = [[] for _ in cells]
    for name, config, coefficient in estimators:
        # All cells at once: a coefficient costs the same for four items as for eighty-four.
        for own, values in zip(of_cells, np.split(coefficient(log_ratio, advantage), bounds), strict=True):
            own.append((name, config, _known(values)))
    return [row for cell, own in zip(cells, of_cells, strict=True) for row in cell_rows(cell, own, ns)]


def _known(coefficient_K: Floats) -> Coefficient:
    return lambda log_ratio, advantage: coefficient_K


def paper_cells() -> list[StudyCell]:
    """Returns the 3 targets x 7 behaviours of the published study, for the logit of `right` in the start state."""
    # Imported here because the suites load torch, which reading tables must not cost.
    from replaybench.suites import gridworld

    mdp, right = gridworld.paper_2x2(), gridworld.ACTIONS.index("right")
    return [
        mdp_cell(mdp, target_SK, behaviour_SK, action_index=right, target=target, behaviour=behaviour)
        for target, target_SK in gridworld.study_targets().items()
        for behaviour, behaviour_SK in gridworld.study_behaviours(target_SK).items()
    ]


def lag_cells(lags: Sequence[int] = LAGS, rate: float = 0.25) -> list[StudyCell]:
    """Returns cells whose behaviour is the target `lag` policy-gradient steps earlier, on the same grid and logit.

    The steps are exact ascent on the expected return from the uniform policy; the target is the policy after as many
    steps as the largest lag, so that the oldest behaviour policy is uniform.
    """
    from replaybench.suites import gridworld

    mdp, right = gridworld.paper_2x2(), gridworld.ACTIONS.index("right")
    policies = gridworld.ascent(mdp, np.zeros_like(mdp.reward), max(lags), rate)
    target = f"PG-{max(lags)}"
    return [
        mdp_cell(mdp, policies[-1], policies[-1 - lag], action_index=right, target=target, behaviour=f"lag {lag}")
        for lag in lags
    ]


def mdp_cell(
    mdp: "FiniteMDP",
    target_SK: Floats,
    behaviour_SK: Floats,
    *,
    action_index: int,
    state: int = 0,
    target: str = "target",
    behaviour: str = "behaviour",
) -> StudyCell:
    """Returns the cell of one state of any finite MDP, with the exact advantages of the target policy.

    Args:
        target_SK, behaviour_SK: [S, K] policies.
        action_index: The logit whose gradient entry is estimated.
        state: Where the action is drawn.
        target, behaviour: What the policies are called in the rows.
    """
    from replaybench.suites.gridworld import advantages

    return StudyCell(
        target=target,
        behaviour=behaviour,
        target_K=target_SK[state],
        behaviour_K=behaviour_SK[state],
        advantage_K=advantages(mdp, target_SK)[state],
        action_index=action_index,
    )


def widest_cell() -> StudyCell:
    """Returns the published cell with the largest |log-ratio|, so that no result decides what is shown."""
    return max(paper_cells(), key=lambda cell: float(abs(np.log(cell.target_K / cell.behaviour_K)).max()))


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
    dominated = np.zeros(len(rows), dtype=bool)
    places: dict[RankedCell, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(_cell_of(row), []).append(place)
    for own in places.values():
        margin = RELATIVE_TOLERANCE * max(rows[place].mse for place in own)
        errors = np.array([(rows[place].bias2, rows[place].variance) for place in own])
        # A rival that is better on one axis and not worse on the other, beyond rounding.
        gains = errors[:, None] - errors
        dominated[own] = ((gains.min(-1) >= -margin) & (gains.max(-1) > margin)).any(1)
    return (~dominated).tolist()


def ranking(rows: Sequence[StudyRow]) -> dict[RankedCell, list[RankedRow]]:
    """Returns the rows of each cell in the order of their mse, the zero estimator among them.

    Raises:
        ContractError: A cell has no row of the zero estimator.
    """
    ranked = {}
    for cell, members in _by_cell(rows).items():
        if ZERO not in {row.baseline for row in members}:
            raise ContractError(f"Cell {tuple(cell)} has no row '{ZERO}'; rank the rows of a whole study.")
        ordered = sorted(members, key=lambda row: row.mse)
        errors = np.array([row.mse for row in ordered])
        num_better = np.searchsorted(errors, errors - RELATIVE_TOLERANCE * errors[-1])
        ranked[cell] = [RankedRow(1 + better, row) for better, row in zip(num_better.tolist(), ordered, strict=True)]
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
