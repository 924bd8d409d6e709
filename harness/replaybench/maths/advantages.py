"""Advantage estimators over one packed sequence of episodes.

Episodes of different length are packed end to end, T steps in all, E episodes; `ends` marks the last step of
each episode, so no value leaks from one episode into the next. V(s_{t+1}) is given explicitly as `next_value`:
0 after a terminal step, the bootstrapped value after a truncation.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ContractError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

# Added to a deviation before dividing by it, so that equal returns give 0 and not 0 / 0.
GROUP_EPSILON = 1e-6
BATCH_EPSILON = 1e-8
SCANNED_AT_ONCE = 1 << 16


class Advantages(NamedTuple):
    """Advantage and value target of each step, [T] float64.

    The target is one of V(s_t), or of Q(s_t, a_t) where the estimator takes action values.
    """

    advantage: Floats
    value_target: Floats


def _check(length: int, **columns: NDArray[np.generic]) -> None:
    for name, column in columns.items():
        if column.shape != (length,):
            raise ContractError(f"{name} has shape {column.shape}, expected ({length},).")


def gae(reward: Floats, value: Floats, next_value: Floats, ends: Bools, *, gamma: float, lam: float) -> Advantages:
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
    ends: Bools,
    joint_log_ratio: Floats,
    *,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    alpha: float = 1.0,
) -> Advantages:
    """V-trace value targets, and the advantage r_t + gamma v_{t+1} - V(s_t) without the factor rho_pg.

    v_t = V(s_t) + min(rho_bar, rho_t) delta_t + gamma lam min(c_bar, rho_t) (v_{t+1} - V(s_{t+1})).
    The ratio is the joint one over all action tokens of the step. The factor rho_pg of the policy gradient
    is left out because the surrogates carry a ratio of their own; both together would correct twice.
    At alpha < 1 the truncation leaks: alpha min(bar, rho) + (1 - alpha) rho stands for each min(bar, rho), up to
    plain importance sampling at alpha = 0; a ratio that overflows then makes the result infinite.

    Source: Espeholt et al. 2018, section 4.1, arXiv 1802.01561; the leak is that of Zahavy et al. 2020,
        arXiv 2002.12928.
    """
    _check(len(reward), value=value, next_value=next_value, ends=ends, joint_log_ratio=joint_log_ratio)
    rho = _leaky_ratio(joint_log_ratio, rho_bar, alpha)
    c = lam * _leaky_ratio(joint_log_ratio, c_bar, alpha)
    delta = rho * (reward + gamma * next_value - value)
    correction = _reverse_scan(delta, np.where(ends, 0.0, gamma * c))
    target = value + correction
    # A packed sequence may stop inside an episode; its last step then bootstraps as if it were an end.
    next_target = np.where(ends, next_value, np.append(target[1:], next_value[-1:]))
    return Advantages(reward + gamma * next_target - value, target)


def vtrace_with_rho_pg(
    reward: Floats,
    value: Floats,
    next_value: Floats,
    ends: Bools,
    joint_log_ratio: Floats,
    *,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> Advantages:
    """V-trace with the policy gradient's own factor: the advantage is min(rho_bar, rho_t) (r_t + gamma v_{t+1} - V).

    Meant for a surrogate without a ratio; under one that carries a ratio the data are corrected twice.

    Source: Espeholt et al. 2018, section 4.2, arXiv 1802.01561.
    Differs: rho_pg is truncated at the same rho_bar as the targets.
    """
    plain = vtrace(reward, value, next_value, ends, joint_log_ratio, gamma=gamma, lam=lam, rho_bar=rho_bar, c_bar=c_bar)
    return Advantages(_leaky_ratio(joint_log_ratio, rho_bar, 1.0) * plain.advantage, plain.value_target)


def monte_carlo(reward: Floats, value: Floats, next_value: Floats, ends: Bools, *, gamma: float) -> Advantages:
    """Discounted return to the end of the episode, minus the value.

    A_t = G_t - V(s_t), G_t = r_t + gamma G_{t+1}, and G_T = gamma V(s_T) beyond a truncation.

    Source: Williams, Machine Learning 8, 1992 (no arXiv id): REINFORCE with a baseline.
    """
    _check(len(reward), value=value, next_value=next_value, ends=ends)
    target = _returns_to_go(reward, next_value, ends, gamma)
    return Advantages(target - value, target)


def grpo(reward: Floats, next_value: Floats, ends: Bools, group: Integers, *, gamma: float) -> Advantages:
    """Group-relative advantage: each episode's return against its group's, in units of the group's deviation.

    A_t = (R_i - mean(R)) / (std(R) + 1e-6) for every step of episode i, over the episodes of its group.

    Args:
        group: [E] number of each episode's group; two episodes at least in each.

    Source: Shao et al. 2024, section 4.1.2, arXiv 2402.03300; deviation with n - 1, as public trainers code it.
    Differs: R is discounted, and a truncated episode's R has gamma^T V(s_T) for what was cut off; the source's
        returns are those of gamma = 1 and episodes that end.
    """
    episodes = _grouped_returns(reward, next_value, ends, group, gamma)
    deviation = np.sqrt(_sum_by(episodes.centred**2, group) / (episodes.size - 1))
    return episodes.spread(episodes.centred / (deviation + GROUP_EPSILON))


def dr_grpo(reward: Floats, next_value: Floats, ends: Bools, group: Integers, *, gamma: float) -> Advantages:
    """Group-relative advantage without the division: A_t = R_i - mean(R) over the episodes of the group.

    Args:
        group: [E] number of each episode's group; two episodes at least in each.

    Source: Liu et al. 2025, arXiv 2503.20783.
    Differs: returns as in `grpo`.
    """
    episodes = _grouped_returns(reward, next_value, ends, group, gamma)
    return episodes.spread(episodes.centred)


def rloo(reward: Floats, next_value: Floats, ends: Bools, group: Integers, *, gamma: float) -> Advantages:
    """Leave-one-out advantage: A_t = R_i - mean of R over the *other* episodes of the group.

    Args:
        group: [E] number of each episode's group; two episodes at least in each.

    Source: Ahmadian et al. 2024, section 3, arXiv 2402.14740.
    Differs: returns as in `grpo`.
    """
    episodes = _grouped_returns(reward, next_value, ends, group, gamma)
    # R_i - (n mean - R_i) / (n - 1) = (R_i - mean) n / (n - 1).
    return episodes.spread(episodes.centred * episodes.size / (episodes.size - 1))


def reinforce_pp(reward: Floats, next_value: Floats, ends: Bools, *, gamma: float) -> Advantages:
    """Return to go, normalised over all steps of all episodes: A_t = (G_t - mean(G)) / (std(G) + 1e-8).

    Source: Hu et al. 2025 (REINFORCE++), arXiv 2501.03262; deviation with n - 1, as public trainers code it.
    Differs: no KL term in the reward; beyond a truncation G has gamma V(s_T); the global batch is the whole replay.
    """
    _check(len(reward), next_value=next_value, ends=ends)
    if len(reward) < 2:
        raise ContractError("Returns are normalised over all steps; one step has no deviation. Give two at least.")
    target = _returns_to_go(reward, next_value, ends, gamma)
    return Advantages((target - target.mean()) / (target.std(ddof=1) + BATCH_EPSILON), target)


def retrace(
    reward: Floats,
    value: Floats,
    next_value: Floats,
    ends: Bools,
    action_value: Floats,
    joint_log_ratio: Floats,
    *,
    gamma: float,
    lam: float = 1.0,
) -> Advantages:
    """Retrace(lambda) targets of action values, and the advantage over the state's value.

    G_t = Q_t + sum_{k>=t} gamma^(k-t) (prod_{t<i<=k} c_i) (r_k + gamma V(s_{k+1}) - Q_k), c_i = lam min(1, rho_i),
    Q_t = Q(s_t, a_t), V(s) = E_{a~pi} Q(s, a); A_t = G_t - V(s_t).

    Args:
        value, next_value: [T] expected action value of the current policy before and after the step.
        action_value: [T] Q of the logged action.

    Source: Munos et al. 2016, equations 3 and 4, arXiv 1606.02647.
    """
    _check(len(reward), joint_log_ratio=joint_log_ratio)
    trace = lam * _leaky_ratio(joint_log_ratio, 1.0, 1.0)
    return _traced(reward, value, next_value, ends, action_value, trace, gamma)


def tree_backup(
    reward: Floats,
    value: Floats,
    next_value: Floats,
    ends: Bools,
    action_value: Floats,
    joint_log_pi: Floats,
    *,
    gamma: float,
    lam: float = 1.0,
) -> Advantages:
    """Tree-backup(lambda): the sum of `retrace` with the trace c_i = lam pi(a_i|s_i), which never reads mu.

    Source: Precup, Sutton and Singh, ICML 2000 (no arXiv id); in this form in arXiv 1606.02647, table 1.
    """
    _check(len(reward), joint_log_pi=joint_log_pi)
    return _traced(reward, value, next_value, ends, action_value, lam * np.exp(joint_log_pi), gamma)


class _GroupedReturns(NamedTuple):
    """Returns to go [T]; length, return minus its group's mean, and size of its group of each episode, [E]."""

    to_go: Floats
    length: Integers
    centred: Floats
    size: Floats

    def spread(self, advantage: Floats) -> Advantages:
        """Gives every step the advantage [E] of its episode; the values' targets are the returns to go."""
        return Advantages(np.repeat(advantage, self.length), self.to_go)


def _grouped_returns(reward: Floats, next_value: Floats, ends: Bools, group: Integers, gamma: float) -> _GroupedReturns:
    _check(len(reward), next_value=next_value, ends=ends)
    stop = np.flatnonzero(_is_last(ends)) + 1
    length = np.diff(stop, prepend=0)
    _check(len(length), group=group)
    to_go = _returns_to_go(reward, next_value, ends, gamma)
    total = to_go[stop - length]
    size = _sum_by(np.ones_like(total), group)
    if (size < 2).any():
        raise ContractError("A group of one episode has nothing to be compared with. Give two episodes at least.")
    return _GroupedReturns(to_go, length, total - _sum_by(total, group) / size, size)


def _sum_by(values: Floats, group: Integers) -> Floats:
    """Returns for each element the sum over its group."""
    return np.asarray(np.bincount(group, weights=values)[group], np.float64)


def _returns_to_go(reward: Floats, next_value: Floats, ends: Bools, gamma: float) -> Floats:
    last = _is_last(ends)
    return _reverse_scan(np.where(last, reward + gamma * next_value, reward), np.where(last, 0.0, gamma))


def _is_last(ends: Bools) -> Bools:
    """Returns `ends` with the last packed step set, which cuts an episode that the sequence stops inside."""
    last = ends.copy()
    last[-1:] = True
    return last


def _traced(
    reward: Floats,
    value: Floats,
    next_value: Floats,
    ends: Bools,
    action_value: Floats,
    trace: Floats,
    gamma: float,
) -> Advantages:
    """Returns the targets that decay by `trace` of the *following* step, since a_t itself is given."""
    _check(len(reward), value=value, next_value=next_value, ends=ends, action_value=action_value)
    delta = reward + gamma * next_value - action_value
    carry = np.where(ends, 0.0, gamma * np.append(trace[1:], 0.0))
    target = action_value + _reverse_scan(delta, carry)
    return Advantages(target - value, target)


def _leaky_ratio(log_ratio: Floats, bar: float, alpha: float) -> Floats:
    truncated = np.exp(np.minimum(log_ratio, np.log(bar)))
    if alpha == 1.0:
        # Without a leak an infinite ratio must not be touched: 0 * inf is no number.
        return np.asarray(truncated)
    with np.errstate(over="ignore"):
        return np.asarray(alpha * truncated + (1.0 - alpha) * np.exp(log_ratio))


def _reverse_scan(term: Floats, carry: Floats) -> Floats:
    """Returns x with x_t = term_t + carry_t x_{t+1} and x_T = 0."""
    out = np.empty(len(term), dtype=np.float64)
    following = 0.0
    # Python floats are the same IEEE doubles as numpy's, at a fraction of the cost an element but four times the size.
    for stop in range(len(term), 0, -SCANNED_AT_ONCE):
        start = max(0, stop - SCANNED_AT_ONCE)
        pairs = zip(reversed(term[start:stop].tolist()), reversed(carry[start:stop].tolist()), strict=True)
        for t, (increment, factor) in zip(range(stop - 1, start - 1, -1), pairs, strict=True):
            following = increment + factor * following
            out[t] = following
    return out
