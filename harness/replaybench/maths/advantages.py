"""Advantage estimators over one packed sequence of episodes.

Episodes of different length are packed end to end, T steps in all; `ends` marks the last step of each
episode, so no value leaks from one episode into the next. V(s_{t+1}) is given explicitly as `next_value`:
0 after a terminal step, the bootstrapped value after a truncation.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ContractError

Floats = NDArray[np.float64]


class Advantages(NamedTuple):
    """Advantage and value target of each step, [T] float64."""

    advantage: Floats
    value_target: Floats


def _check(length: int, **columns: NDArray[np.generic]) -> None:
    for name, column in columns.items():
        if column.shape != (length,):
            raise ContractError(f"{name} has shape {column.shape}, expected ({length},).")


def gae(
    reward: Floats, value: Floats, next_value: Floats, ends: NDArray[np.bool_], *, gamma: float, lam: float
) -> Advantages:
    """Generalised advantage estimation.

    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t); the recursion restarts at
    an episode's end. lam=1 gives Monte-Carlo returns minus the value.

    Source: Schulman et al. 2016, eq. 16, arXiv 1506.02438.
    """
    _check(len(reward), value=value, next_value=next_value, ends=ends)
    delta = reward + gamma * next_value - value
    carry = np.where(ends, 0.0, gamma * lam)
    advantage = _reverse_scan(delta, carry)
    return Advantages(advantage, advantage + value)


def vtrace(
    reward: Floats,
    value: Floats,
    next_value: Floats,
    ends: NDArray[np.bool_],
    joint_log_ratio: Floats,
    *,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> Advantages:
    """V-trace value targets, and the advantage r_t + gamma v_{t+1} - V(s_t) without the factor rho_pg.

    v_t = V(s_t) + min(rho_bar, rho_t) delta_t + gamma lam min(c_bar, rho_t) (v_{t+1} - V(s_{t+1})).
    The ratio is the joint one over all action tokens of the step. The factor rho_pg of the policy gradient
    is left out because the surrogates carry a ratio of their own; both together would correct twice.

    Source: Espeholt et al. 2018, section 4.1, arXiv 1802.01561.
    """
    _check(len(reward), value=value, next_value=next_value, ends=ends, joint_log_ratio=joint_log_ratio)
    rho = np.exp(np.minimum(joint_log_ratio, np.log(rho_bar)))
    c = lam * np.exp(np.minimum(joint_log_ratio, np.log(c_bar)))
    delta = rho * (reward + gamma * next_value - value)
    correction = _reverse_scan(delta, np.where(ends, 0.0, gamma * c))
    target = value + correction
    # A packed sequence may stop inside an episode; its last step then bootstraps as if it were an end.
    next_target = np.where(ends, next_value, np.append(target[1:], next_value[-1:]))
    return Advantages(reward + gamma * next_target - value, target)


def _reverse_scan(term: Floats, carry: Floats) -> Floats:
    """Returns x with x_t = term_t + carry_t x_{t+1} and x_T = 0."""
    out = np.empty(len(term), dtype=np.float64)
    following = 0.0
    # Python floats are the same IEEE doubles as numpy's, at a fraction of the cost an element.
    pairs = zip(reversed(term.tolist()), reversed(carry.tolist()), strict=True)
    for t, (increment, factor) in zip(range(len(term) - 1, -1, -1), pairs, strict=True):
        following = increment + factor * following
        out[t] = following
    return out
