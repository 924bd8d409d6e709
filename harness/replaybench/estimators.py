"""The table of advantage estimators: what each one reads, what it returns, and which function of the maths it is.

An estimator is an axis of the spec, the same for every baseline of a cell; nothing else in the harness asks for one
by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ContractError, unknown_name
from replaybench.maths import advantages as maths
from replaybench.maths.advantages import Advantages

Floats = NDArray[np.float64]
Column = TypeVar("Column")

# What an estimator may read beyond rewards and values, and what to do where it is lacking.
NEEDS = {
    "log_ratio": "log each action token's log-probability when acting",
    "log_pi": "nothing to log: the training loop computes it",
    "groups": "log at least two episodes of each task and behaviour version, or replay more of them (a lower ratio)",
    "action_values": "train a policy that has a method action_values, such as kind 'tabular_q' on the grids",
}
EstimatorNeed = Literal["log_ratio", "log_pi", "groups", "action_values"]


class Parameters(NamedTuple):
    """Numbers that estimators share; each takes those that its equation has."""

    gamma: float
    lam: float
    rho_bar: float
    c_bar: float
    alpha: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What an estimator sees: N decisions of E episodes, packed end to end.

    Args:
        reward, value, next_value: [N]; next_value is 0 after a terminal decision.
        ends: [N] last decision of its episode.
        log_ratio: [N] joint log pi - log mu. log_pi: [N] joint log-probability of the action.
        group: [E] number of each episode's group: one task, one behaviour version.
        action_value: [N] Q of the logged action; value is then its expectation under the current policy.

    An estimator finds the last four only if it needs them.
    """

    reward: Floats
    value: Floats
    next_value: Floats
    ends: NDArray[np.bool_]
    log_ratio: Floats | None = None
    log_pi: Floats | None = None
    group: NDArray[np.int64] | None = None
    action_value: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """An advantage estimator and what the harness must know about it before it runs.

    Args:
        summary: The advantage in one line.
        arxiv: arXiv id of its source, or None where the source has none.
        estimate: The equation, from columns and parameters.
        needs: Columns beyond rewards and values.
        logged_values: Values are the behaviour policy's as logged, not the current value function's.
        normalises: The definition says how advantages are scaled, so scaling them again makes another method.
        ratio: Whether the advantage carries a policy ratio: never, for surrogates that have none, or for any.
    """

    name: str
    summary: str
    arxiv: str | None
    estimate: Callable[[Columns, Parameters], Advantages]
    needs: tuple[EstimatorNeed, ...] = ()
    logged_values: bool = False
    normalises: bool = False
    ratio: Literal["never", "without_another", "always"] = "never"


def find_estimator(name: str) -> Estimator:
    """Returns the estimator of this name.

    Raises:
        ConfigError: There is none; the message has the nearest name and the list.
    """
    if name not in ESTIMATORS:
        raise unknown_name("advantage estimator", name, ESTIMATORS)
    return ESTIMATORS[name]


def _gae(columns: Columns, p: Parameters) -> Advantages:
    return maths.gae(*_state_columns(columns), gamma=p.gamma, lam=p.lam)


def _monte_carlo(columns: Columns, p: Parameters) -> Advantages:
    return maths.monte_carlo(*_state_columns(columns), gamma=p.gamma)


def _vtrace(columns: Columns, p: Parameters) -> Advantages:
    ratio = _given(columns.log_ratio, "log_ratio")
    return maths.vtrace(*_state_columns(columns), ratio, gamma=p.gamma, lam=p.lam, rho_bar=p.rho_bar, c_bar=p.c_bar)


def _leaky_vtrace(columns: Columns, p: Parameters) -> Advantages:
    ratio = _given(columns.log_ratio, "log_ratio")
    return maths.vtrace(
        *_state_columns(columns), ratio, gamma=p.gamma, lam=p.lam, rho_bar=p.rho_bar, c_bar=p.c_bar, alpha=p.alpha
    )


def _vtrace_with_rho_pg(columns: Columns, p: Parameters) -> Advantages:
    ratio = _given(columns.log_ratio, "log_ratio")
    return maths.vtrace_with_rho_pg(
        *_state_columns(columns), ratio, gamma=p.gamma, lam=p.lam, rho_bar=p.rho_bar, c_bar=p.c_bar
    )


def _grpo(columns: Columns, p: Parameters) -> Advantages:
    return maths.grpo(*_return_columns(columns), _given(columns.group, "groups"), gamma=p.gamma)


def _dr_grpo(columns: Columns, p: Parameters) -> Advantages:
    return maths.dr_grpo(*_return_columns(columns), _given(columns.group, "groups"), gamma=p.gamma)


def _rloo(columns: Columns, p: Parameters) -> Advantages:
    return maths.rloo(*_return_columns(columns), _given(columns.group, "groups"), gamma=p.gamma)


def _reinforce_pp(columns: Columns, p: Parameters) -> Advantages:
    return maths.reinforce_pp(*_return_columns(columns), gamma=p.gamma)


def _retrace(columns: Columns, p: Parameters) -> Advantages:
    action_value, ratio = _given(columns.action_value, "action_values"), _given(columns.log_ratio, "log_ratio")
    return maths.retrace(*_state_columns(columns), action_value, ratio, gamma=p.gamma, lam=p.lam)


def _tree_backup(columns: Columns, p: Parameters) -> Advantages:
    action_value, log_pi = _given(columns.action_value, "action_values"), _given(columns.log_pi, "log_pi")
    return maths.tree_backup(*_state_columns(columns), action_value, log_pi, gamma=p.gamma, lam=p.lam)


def _state_columns(columns: Columns) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    return columns.reward, columns.value, columns.next_value, columns.ends


def _return_columns(columns: Columns) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    return columns.reward, columns.next_value, columns.ends


def _given(column: Column | None, need: str) -> Column:
    if column is None:
        raise ContractError(f"The estimator reads '{need}'; its row in the table must name it in needs.")
    return column


_TABLE = (
    Estimator(
        name="gae",
        summary="sum of (gamma lam)^k TD errors, values of the current value function",
        arxiv="1506.02438",
        estimate=_gae,
    ),
    Estimator(
        name="gae_stored",
        summary="the same with the behaviour policy's values as logged",
        arxiv="1506.02438",
        estimate=_gae,
        logged_values=True,
    ),
    Estimator(
        name="monte_carlo",
        summary="discounted return to the episode's end, minus the value",
        arxiv=None,
        estimate=_monte_carlo,
    ),
    Estimator(
        name="vtrace",
        summary="r + gamma v' - V with V-trace targets, without rho_pg",
        arxiv="1802.01561",
        estimate=_vtrace,
        needs=("log_ratio",),
    ),
    Estimator(
        name="leaky_vtrace",
        summary="V-trace whose truncated ratios leak a share 1 - alpha of the whole ones",
        arxiv="2002.12928",
        estimate=_leaky_vtrace,
        needs=("log_ratio",),
    ),
    Estimator(
        name="vtrace_rho_pg",
        summary="min(rho_bar, rho) (r + gamma v' - V), for a surrogate without a ratio",
        arxiv="1802.01561",
        estimate=_vtrace_with_rho_pg,
        needs=("log_ratio",),
        ratio="without_another",
    ),
    Estimator(
        name="vtrace_double_correction",
        summary="the same under any surrogate: corrects twice where that has a ratio too",
        arxiv="1802.01561",
        estimate=_vtrace_with_rho_pg,
        needs=("log_ratio",),
        ratio="always",
    ),
    Estimator(
        name="grpo",
        summary="(R - mean R) / std R over the episodes of one task and one behaviour version",
        arxiv="2402.03300",
        estimate=_grpo,
        needs=("groups",),
        normalises=True,
    ),
    Estimator(
        name="dr_grpo",
        summary="R - mean R over the same episodes",
        arxiv="2503.20783",
        estimate=_dr_grpo,
        needs=("groups",),
        normalises=True,
    ),
    Estimator(
        name="rloo",
        summary="R - mean R over the other of these episodes",
        arxiv="2402.14740",
        estimate=_rloo,
        needs=("groups",),
        normalises=True,
    ),
    Estimator(
        name="reinforce_pp",
        summary="return to go, normalised over the whole replay",
        arxiv="2501.03262",
        estimate=_reinforce_pp,
        normalises=True,
    ),
    Estimator(
        name="retrace",
        summary="Retrace(lam) target of Q, minus V; traces lam min(1, rho)",
        arxiv="1606.02647",
        estimate=_retrace,
        needs=("log_ratio", "action_values"),
    ),
    Estimator(
        name="tree_backup",
        summary="the same with traces lam pi(a|s)",
        arxiv=None,
        estimate=_tree_backup,
        needs=("log_pi", "action_values"),
    ),
)
ESTIMATORS = {estimator.name: estimator for estimator in _TABLE}
