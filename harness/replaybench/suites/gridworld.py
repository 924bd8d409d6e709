"""Finite MDPs small enough to solve exactly, so that every estimate of the harness can be checked against the truth.

Shape letters: S states, K actions. Cells are numbered row by row from the top left; the goal is the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from replaybench.errors import ConfigError, ContractError, NumericalError, unknown_name
from replaybench.suites import Transition

Floats = NDArray[np.float64]
Cell = tuple[int, int]

ACTIONS = ("up", "down", "left", "right")
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
SIDEWAYS = ((2, 3), (2, 3), (0, 1), (0, 1))
GOALS_PER_SEED = 50
MAX_SWEEPS = 100_000
STEP_COST_2X2 = np.full(4, -1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class FiniteMDP:
    """A Markov decision process over S states and K actions, in float64.

    Args:
        transition: [S, K, S] probability of the next state.
        reward: [S, K] expected reward of the action.
        terminal: [S] bool; an episode ends on arrival, and nothing is earned from there.
        start: [S] distribution of the first state.
        gamma: Discount in [0, 1]; 1 needs policies that reach a terminal state.
    """

    transition: Floats
    reward: Floats
    terminal: NDArray[np.bool_]
    start: Floats
    gamma: float

    def __post_init__(self) -> None:
        """Checks that the tables agree in shape and hold distributions."""
        num_states, num_actions = self.reward.shape
        shapes = (self.transition.shape, self.terminal.shape, self.start.shape)
        if shapes != ((num_states, num_actions, num_states), (num_states,), (num_states,)):
            raise ContractError(f"transition, terminal, start have shapes {shapes}; reward is {self.reward.shape}.")
        for name, table in (("transition", self.transition), ("start", self.start)):
            if (table < 0).any() or not np.allclose(table.sum(-1), 1.0, rtol=0, atol=1e-12):
                raise ContractError(f"{name} is not a probability distribution along its last axis.")

    @property
    def num_states(self) -> int:
        """S, terminal states included."""
        return int(self.reward.shape[0])

    @property
    def num_actions(self) -> int:
        """K."""
        return int(self.reward.shape[1])


def state_values(mdp: FiniteMDP, policy_SK: Floats) -> Floats:
    """Returns V [S], the exact solution of V = r_pi + gamma P_pi V; 0 in terminal states."""
    bellman_SS = _bellman_matrix(mdp, policy_SK)
    reward_S = np.where(mdp.terminal, 0.0, (policy_SK * mdp.reward).sum(1))
    return np.asarray(np.linalg.solve(bellman_SS, reward_S), np.float64)


def action_values(mdp: FiniteMDP, policy_SK: Floats) -> Floats:
    """Returns Q [S, K] = r + gamma P V; 0 in terminal states."""
    return _backup(mdp, state_values(mdp, policy_SK))


def advantages(mdp: FiniteMDP, policy_SK: Floats) -> Floats:
    """Returns A [S, K] = Q - V; 0 in terminal states."""
    return action_values(mdp, policy_SK) - state_values(mdp, policy_SK)[:, None]


def visitation(mdp: FiniteMDP, policy_SK: Floats) -> Floats:
    """Returns d [S], the expected discounted visits sum_t gamma^t P(s_t = s); terminal states count on arrival only."""
    return np.asarray(np.linalg.solve(_bellman_matrix(mdp, policy_SK).T, mdp.start), np.float64)


def policy_gradient(mdp: FiniteMDP, policy_SK: Floats) -> Floats:
    """Returns the exact gradient [S, K] of J = start . V with respect to the logits of a softmax policy.

    dJ/d theta[s, k] = d(s) pi(k|s) A(s, k), with the unnormalised discounted visitation d.

    Source: Sutton et al. 2000, theorem 1, with the score of a softmax.
    """
    return visitation(mdp, policy_SK)[:, None] * policy_SK * advantages(mdp, policy_SK)


def ascent(mdp: FiniteMDP, logits_SK: Floats, steps: int, rate: float) -> list[Floats]:
    """Returns the softmax policies [S, K] after 0, 1, ..., `steps` exact gradient steps on J from these logits."""
    policies = [softmax(logits_SK, axis=1)]
    for _ in range(steps):
        logits_SK = logits_SK + rate * policy_gradient(mdp, policies[-1])
        policies.append(softmax(logits_SK, axis=1))
    return policies


def optimal_policy(mdp: FiniteMDP, *, tolerance: float = 1e-12) -> Floats:
    """Returns a deterministic optimal policy [S, K] by value iteration; among equal actions the first.

    Raises:
        NumericalError: The values do not settle, as with gamma = 1 and rewards that can be earned for ever.
    """
    value_S = np.zeros(mdp.num_states)
    for _ in range(MAX_SWEEPS):
        q_SK = _backup(mdp, value_S)
        if np.abs(q_SK.max(1) - value_S).max() <= tolerance:
            # Rounding must not decide between equal actions: it differs from one CPU to another.
            is_best_SK = q_SK >= q_SK.max(1, keepdims=True) - 1e-9
            return np.asarray(np.eye(mdp.num_actions)[is_best_SK.argmax(1)])
        value_S = q_SK.max(1)
    raise NumericalError(f"Value iteration did not settle in {MAX_SWEEPS} sweeps; use gamma < 1 (it is {mdp.gamma}).")


def _bellman_matrix(mdp: FiniteMDP, policy_SK: Floats) -> Floats:
    """Returns I - gamma P_pi, without the transitions out of terminal states."""
    if policy_SK.shape != mdp.reward.shape:
        raise ContractError(f"The policy has shape {policy_SK.shape}, expected [S, K] = {mdp.reward.shape}.")
    transition_SS = np.einsum("sk,skt->st", policy_SK, mdp.transition)
    transition_SS[mdp.terminal] = 0.0
    return np.asarray(np.eye(mdp.num_states) - mdp.gamma * transition_SS)


def _backup(mdp: FiniteMDP, value_S: Floats) -> Floats:
    q_SK = mdp.reward + mdp.gamma * mdp.transition @ value_S
    return np.asarray(np.where(mdp.terminal[:, None], 0.0, q_SK))


def paper_2x2() -> FiniteMDP:
    """Returns the 2x2 grid of the exact bias-variance study: S0 S1 over S2 SG, reward -1 a step, gamma 0.9.

    Source: the analytic study of GIPO, arXiv 2603.03955.
    """
    return _grid_mdp(2, 0.0, terminal=[3], start=[0], arrival_reward=STEP_COST_2X2, gamma=0.9)


def slippery(
    *,
    size: int = 5,
    slip: float = 0.1,
    pits: Sequence[Cell] = ((1, 1), (2, 3), (3, 1)),
    starts: Sequence[Cell] = ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)),
    gamma: float = 0.95,
) -> FiniteMDP:
    """Returns a size x size grid with pits and slippery floor; reward 1 on reaching the bottom-right corner, else 0.

    Args:
        slip: Probability that a move goes sideways, half to each side.
        pits: Cells (row, column) that end the episode in failure.
        starts: Cells where an episode begins, all equally likely.

    Raises:
        ConfigError: A pit or start lies outside the grid or on another special cell, or slip is no probability.
    """
    goal = (size - 1, size - 1)
    for cell in (*pits, *starts):
        if not (0 <= cell[0] < size and 0 <= cell[1] < size) or cell == goal:
            raise ConfigError(
                f"Cell {cell} of a {size}x{size} grid lies outside it or on the goal; choose another cell."
            )
    if set(pits) & set(starts) or not starts:
        raise ConfigError("A slippery grid needs start cells, and none of them may be a pit.")
    if not 0.0 <= slip <= 1.0:
        raise ConfigError(f"slip is the probability of a sideways move, between 0 and 1; it is {slip}.")
    terminal = [row * size + column for row, column in (*pits, goal)]
    start = [row * size + column for row, column in starts]
    return _grid_mdp(size, slip, terminal=terminal, start=start, arrival_reward=_goal_reward(size**2), gamma=gamma)


def _goal_reward(num_states: int) -> Floats:
    """Returns the reward [S] on arrival that pays 1 at the goal and 0 elsewhere."""
    return np.asarray(np.eye(num_states)[-1])


def _grid_mdp(
    size: int, slip: float, *, terminal: list[int], start: list[int], arrival_reward: Floats, gamma: float
) -> FiniteMDP:
    num_states = size**2
    is_terminal = np.isin(np.arange(num_states), terminal)
    transition = np.zeros((num_states, len(ACTIONS), num_states))
    for state in range(num_states):
        for action, sides in enumerate(SIDEWAYS):
            if is_terminal[state]:
                transition[state, action, state] = 1.0
                continue
            transition[state, action, _neighbour(state, action, size)] += 1.0 - slip
            for side in sides:
                transition[state, action, _neighbour(state, side, size)] += slip / 2
    return FiniteMDP(
        transition=transition,
        reward=np.where(is_terminal[:, None], 0.0, transition @ arrival_reward),
        terminal=is_terminal,
        start=np.isin(np.arange(num_states), start) / len(set(start)),
        gamma=gamma,
    )


def _neighbour(state: int, action: int, size: int) -> int:
    """Returns the cell that a move leads to; a move into a wall stays."""
    row, column = state // size + MOVES[action][0], state % size + MOVES[action][1]
    return row * size + column if 0 <= row < size and 0 <= column < size else state


def study_targets() -> dict[str, Floats]:
    """Returns the target policies [S, K] of the exact study on `paper_2x2`, from mild (PI-1) to near-optimal (PI-3).

    Source: the analytic study of GIPO, arXiv 2603.03955.
    """
    return {
        "PI-1": _policy([0.20, 0.30, 0.20, 0.30], [0.15, 0.45, 0.25, 0.15], [0.15, 0.15, 0.25, 0.45]),
        "PI-2": _policy([0.10, 0.40, 0.10, 0.40], [0.10, 0.60, 0.20, 0.10], [0.10, 0.10, 0.20, 0.60]),
        "PI-3": _policy([0.05, 0.45, 0.05, 0.45], [0.05, 0.75, 0.10, 0.10], [0.05, 0.10, 0.10, 0.75]),
    }


def study_behaviours(target_SK: Floats) -> dict[str, Floats]:
    """Returns the behaviour policies A to G [S, K] of the exact study; D is the target itself.

    Source: the analytic study of GIPO, arXiv 2603.03955.
    """
    uniform = np.full((4, 4), 0.25)
    right = np.tile(softmax([0.0, 0.0, 0.0, 1.0]), (4, 1))
    down = np.tile(softmax([0.0, 1.0, 0.0, 0.0]), (4, 1))
    n1 = _policy([0.30, 0.20, 0.30, 0.20], [0.40, 0.15, 0.10, 0.35], [0.20, 0.35, 0.30, 0.15])
    n2 = _policy([0.25, 0.30, 0.20, 0.25], [0.20, 0.45, 0.15, 0.20], [0.15, 0.25, 0.15, 0.45])
    n3 = _policy([0.20, 0.35, 0.20, 0.25], [0.15, 0.40, 0.20, 0.25], [0.25, 0.15, 0.15, 0.45])
    n4 = _policy([0.32, 0.18, 0.28, 0.22], [0.28, 0.24, 0.28, 0.20], [0.24, 0.20, 0.30, 0.26])
    n5 = _policy([0.12, 0.38, 0.12, 0.38], [0.12, 0.52, 0.21, 0.15], [0.10, 0.16, 0.22, 0.52])
    return {
        "A": uniform,
        "B": 0.4 * uniform + 0.3 * right + 0.3 * down,
        "C": 0.2 * uniform + 0.4 * right + 0.4 * down,
        "D": target_SK,
        "E": 0.45 * n1 + 0.35 * n4 + 0.2 * uniform,
        "F": 0.45 * n2 + 0.35 * n5 + 0.2 * uniform,
        "G": 0.4 * n3 + 0.3 * n4 + 0.3 * n5,
    }


def _policy(*rows: list[float]) -> Floats:
    """Returns a policy on `paper_2x2` from its rows S0, S1, S2; no action counts in the goal, which is uniform."""
    return np.array([*rows, [0.25] * 4])


class GridTask(NamedTuple):
    """A grid MDP and the reward [S] paid on arrival in each state, whose expectation is the MDP's reward."""

    mdp: FiniteMDP
    arrival_reward: Floats


class GridWorldSuite:
    """The grids as a suite: one action token with four bins, the observation is the state's index.

    Args:
        expert_width: Probability in [0, 1] that the scripted expert acts uniformly at random.
    """

    num_goals = GOALS_PER_SEED
    simulator = "gridworld 1"

    def __init__(self, *, expert_width: float = 0.5) -> None:
        if not 0.0 <= expert_width <= 1.0:
            raise ConfigError(f"expert_width is a probability, between 0 and 1; it is {expert_width}.")
        self.expert_width = expert_width
        self._tasks = {
            "gridworld-2x2": GridTask(paper_2x2(), STEP_COST_2X2),
            "gridworld-5x5": GridTask(slippery(), _goal_reward(25)),
        }

    def tasks(self) -> list[str]:
        return sorted(self._tasks)

    def instruction(self, task: str) -> str:
        return "reach the bottom right cell"

    def policy_settings(self, task: str) -> dict[str, Any]:
        return {"num_states": self._task(task).mdp.num_states, "num_bins": len(ACTIONS)}

    def make(self, task: str) -> "GridWorldEnvironment":
        return GridWorldEnvironment(self._task(task), self.expert_width)

    def _task(self, name: str) -> GridTask:
        if name not in self._tasks:
            raise unknown_name("GridWorld task", name, self._tasks)
        return self._tasks[name]


class GridWorldEnvironment:
    """One walker on a grid; success at the goal, failure in a pit."""

    def __init__(self, task: GridTask, expert_width: float) -> None:
        self._mdp, self._arrival_reward = task
        uniform = 1.0 / self._mdp.num_actions
        self._expert = (1.0 - expert_width) * optimal_policy(self._mdp) + expert_width * uniform
        self._goal = self._mdp.num_states - 1
        # At the goal, so that a step before the first reset is refused like one after the end.
        self._state = self._goal
        self._rng = np.random.default_rng(0)

    def reset(self, goal: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
        seed, index = goal
        draws = np.random.default_rng(seed).choice(self._mdp.num_states, size=GOALS_PER_SEED, p=self._mdp.start)
        self._state = int(draws[index])
        self._rng = rng
        return self._observation()

    def step(self, action_tokens: NDArray[np.int16]) -> Transition:
        if self._mdp.terminal[self._state]:
            raise ContractError("The episode is over or has not begun; call reset before step.")
        probabilities = self._mdp.transition[self._state, int(action_tokens[0])]
        self._state = int(self._rng.choice(self._mdp.num_states, p=probabilities))
        terminated = bool(self._mdp.terminal[self._state])
        reward = float(self._arrival_reward[self._state])
        return Transition(self._observation(), reward, terminated, self._state == self._goal)

    def expert(self) -> Floats:
        return self._expert[None, self._state]

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self._state], np.float32)
