"""The exact quantities of the grids against hand computations, slow twins and the simulator itself."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from replaybench.errors import ConfigError, ContractError, NumericalError
from replaybench.policy import make_policy
from replaybench.suites import Environment, Suite, gridworld, make_suite
from replaybench.suites.gridworld import FiniteMDP

UP, DOWN, LEFT, RIGHT = range(4)
Floats = NDArray[np.float64]


def random_mdp(rng: np.random.Generator, *, num_states: int = 4, num_actions: int = 3, gamma: float = 0.8) -> FiniteMDP:
    """Returns an MDP without structure whose last state is terminal, with junk where nothing may be earned."""
    return FiniteMDP(
        transition=rng.dirichlet(np.ones(num_states), (num_states, num_actions)),
        reward=rng.normal(size=(num_states, num_actions)),
        terminal=np.arange(num_states) == num_states - 1,
        start=rng.dirichlet(np.ones(num_states)),
        gamma=gamma,
    )


def random_policy(rng: np.random.Generator, mdp: FiniteMDP) -> Floats:
    return np.asarray(softmax(rng.normal(size=mdp.reward.shape), axis=1))


def unroll(mdp: FiniteMDP, policy_SK: Floats, num_steps: int = 400) -> tuple[float, Floats]:
    """Slow twin: returns J and the visitation by walking the state distribution forward in time."""
    alive, value, visits = mdp.start.copy(), 0.0, np.zeros(mdp.num_states)
    for t in range(num_steps):
        visits += mdp.gamma**t * alive
        following = np.zeros(mdp.num_states)
        for s in range(mdp.num_states):
            for k in range(mdp.num_actions):
                if not mdp.terminal[s]:
                    value += mdp.gamma**t * alive[s] * policy_SK[s, k] * mdp.reward[s, k]
                    following += alive[s] * policy_SK[s, k] * mdp.transition[s, k]
        alive = following
    return value, visits


def run_episode(environment: Environment, goal: tuple[int, int], act: Callable[[], int], seed: int) -> list[Any]:
    """Returns the transitions of one episode, cut at 200 steps."""
    environment.reset(goal, np.random.default_rng(seed))
    transitions: list[Any] = []
    while len(transitions) < 200 and not (transitions and transitions[-1].terminated):
        transitions.append(environment.step(np.array([act()], np.int16)))
    return transitions


def test_the_2x2_grid_has_the_published_successors() -> None:
    """Every move leads where the published table says (states S0 S1 S2 SG, actions up down left right)."""
    mdp = gridworld.paper_2x2()
    assert mdp.transition.argmax(2).tolist() == [[0, 2, 0, 1], [1, 3, 0, 1], [0, 2, 2, 3], [3, 3, 3, 3]]
    assert set(mdp.transition.flatten()) == {0.0, 1.0}
    assert mdp.reward.tolist() == [[-1.0] * 4] * 3 + [[0.0] * 4]
    assert mdp.gamma == 0.9


def test_values_of_the_2x2_grid_match_a_hand_computation() -> None:
    """Right then down costs 1 + 0.9; staying for ever costs 1 / (1 - 0.9); a wasted step costs 1 + 0.9 * 1.9."""
    mdp = gridworld.paper_2x2()
    policy = np.eye(4)[[RIGHT, DOWN, UP, UP]]
    np.testing.assert_allclose(gridworld.state_values(mdp, policy), [-1.9, -1.0, -1 - 0.9 * 1.9, 0.0])
    q = gridworld.action_values(mdp, policy)
    np.testing.assert_allclose(q[0], [-2.71, -1 - 0.9 * 2.71, -2.71, -1.9])
    np.testing.assert_allclose(gridworld.advantages(mdp, policy)[0], q[0] + 1.9)
    np.testing.assert_allclose(gridworld.state_values(mdp, np.eye(4)[[UP] * 4]), [-10.0, -10.0, -10.0 * 0.9 - 1, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_values_and_visitation_match_a_walk_forward_in_time(seed: int) -> None:
    """start . V and the visitation equal the sums over time of a slow twin; Q is one step followed by V."""
    rng = np.random.default_rng(seed)
    mdp = random_mdp(rng)
    policy = random_policy(rng, mdp)
    value, visits = unroll(mdp, policy)
    v = gridworld.state_values(mdp, policy)
    assert mdp.start @ v == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(gridworld.visitation(mdp, policy), visits, atol=1e-12)
    for s, k in product(range(mdp.num_states - 1), range(mdp.num_actions)):
        expected = mdp.reward[s, k] + mdp.gamma * sum(mdp.transition[s, k, t] * v[t] for t in range(mdp.num_states))
        assert gridworld.action_values(mdp, policy)[s, k] == pytest.approx(expected, abs=1e-12)


def test_nothing_is_earned_from_a_terminal_state() -> None:
    """V, Q and A are 0 in a terminal state, whatever the tables hold there."""
    rng = np.random.default_rng(0)
    mdp = random_mdp(rng)
    policy = random_policy(rng, mdp)
    assert mdp.reward[-1].any()
    assert gridworld.state_values(mdp, policy)[-1] == 0.0
    assert not gridworld.action_values(mdp, policy)[-1].any()
    assert not gridworld.advantages(mdp, policy)[-1].any()


@pytest.mark.parametrize("name", ["random", "2x2", "5x5"])
def test_the_policy_gradient_matches_finite_differences(name: str) -> None:
    """The policy-gradient theorem gives the derivative of J that central differences give, in every logit."""
    rng = np.random.default_rng(3)
    mdp = {"random": random_mdp(rng), "2x2": gridworld.paper_2x2(), "5x5": gridworld.slippery()}[name]
    logits = rng.normal(size=mdp.reward.shape)
    expected = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        ahead, behind = (gridworld.state_values(mdp, softmax(logits + sign * step, axis=1)) for sign in (1, -1))
        expected[index] = mdp.start @ (ahead - behind) / 2e-5
    gradient = gridworld.policy_gradient(mdp, softmax(logits, axis=1))
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_no_deterministic_policy_beats_the_optimal_one(seed: int) -> None:
    """Value iteration finds the policy that trying all 27 deterministic ones finds, in every state."""
    mdp = random_mdp(np.random.default_rng(seed), num_states=4)
    candidates = [np.eye(3)[[*choice, 0]] for choice in product(range(3), repeat=3)]
    best = np.max([gridworld.state_values(mdp, policy) for policy in candidates], axis=0)
    np.testing.assert_allclose(gridworld.state_values(mdp, gridworld.optimal_policy(mdp)), best, atol=1e-9)


def test_the_first_of_equally_good_actions_is_optimal() -> None:
    """In S0 right and down are equally good and down comes first; S1 and S2 have one best action each."""
    assert gridworld.optimal_policy(gridworld.paper_2x2())[:3].argmax(1).tolist() == [DOWN, DOWN, RIGHT]


def test_rounding_does_not_decide_between_equal_actions() -> None:
    """0.1 + 0.2 is larger than 0.3 in floating point; the first action is optimal all the same."""
    assert 0.1 + 0.2 > 0.3
    mdp = FiniteMDP(
        transition=np.array([[[0.0, 1.0], [0.0, 1.0]]] * 2),
        reward=np.array([[0.3, 0.1 + 0.2], [0.0, 0.0]]),
        terminal=np.array([False, True]),
        start=np.array([1.0, 0.0]),
        gamma=0.9,
    )
    assert gridworld.optimal_policy(mdp)[0].tolist() == [1.0, 0.0]


def test_value_iteration_that_cannot_settle_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that can be earned for ever without discount have no values."""
    monkeypatch.setattr(gridworld, "MAX_SWEEPS", 50)
    one = np.ones((1, 1))
    endless = FiniteMDP(transition=one[None], reward=one, terminal=np.array([False]), start=one[0], gamma=1.0)
    with pytest.raises(NumericalError, match="gamma < 1"):
        gridworld.optimal_policy(endless)


def test_tables_that_are_no_mdp_are_refused() -> None:
    """Shapes must agree and transitions must be distributions; a policy must have a row for every state."""
    mdp = gridworld.paper_2x2()
    tables: dict[str, Any] = {"reward": mdp.reward, "terminal": mdp.terminal, "start": mdp.start, "gamma": 0.9}
    with pytest.raises(ContractError, match="shapes"):
        FiniteMDP(transition=mdp.transition[:3], **tables)
    with pytest.raises(ContractError, match="distribution"):
        FiniteMDP(transition=mdp.transition * 0.5, **tables)
    with pytest.raises(ContractError, match="expected"):
        gridworld.state_values(mdp, np.full((3, 4), 0.25))


def test_a_slippery_move_goes_sideways_as_often_as_stated() -> None:
    """In the top-left corner `right` goes right 0.8, down 0.1, and slips up into the wall 0.1 (hand computation)."""
    mdp = gridworld.slippery(slip=0.2)
    expected = np.zeros(25)
    expected[[1, 5, 0]] = [0.8, 0.1, 0.1]
    np.testing.assert_allclose(mdp.transition[0, RIGHT], expected)
    np.testing.assert_allclose(mdp.transition[19, DOWN, [24, 18, 19]], [0.8, 0.1, 0.1])


def test_the_slippery_grid_pays_on_reaching_the_goal_only() -> None:
    """The expected reward is the probability of arriving at the goal; pits and goal end the episode."""
    mdp = gridworld.slippery(slip=0.2, pits=((1, 1), (2, 3)))
    assert np.flatnonzero(mdp.terminal).tolist() == [6, 13, 24]
    assert mdp.reward[19, DOWN] == pytest.approx(0.8)
    assert mdp.reward[19, RIGHT] == pytest.approx(0.1)
    assert mdp.reward.sum() == pytest.approx(2 * (0.8 + 0.1 + 0.1))


@pytest.mark.parametrize(
    "settings",
    [
        {"pits": ((5, 0),)},
        {"pits": ((4, 4),)},
        {"starts": ((0, -1),)},
        {"starts": ()},
        {"starts": ((1, 1),), "pits": ((1, 1),)},
        {"slip": 1.5},
    ],
)
def test_an_impossible_slippery_grid_is_refused(settings: dict[str, Any]) -> None:
    """Pits and starts lie on the grid, apart from each other and from the goal; slip is a probability."""
    with pytest.raises(ConfigError):
        gridworld.slippery(**settings)


def test_the_suite_has_both_tasks_and_their_policies() -> None:
    """The suite is found by its name, and a tabular policy built from its settings reads its observations."""
    suite = make_suite("gridworld", {})
    assert suite.tasks() == ["gridworld-2x2", "gridworld-5x5"]
    assert (suite.simulator, suite.num_goals) == ("gridworld 1", 50)
    for task, num_states in zip(suite.tasks(), (4, 25), strict=True):
        assert suite.policy_settings(task) == {"num_states": num_states, "num_bins": 4}
        policy = make_policy("tabular", suite.policy_settings(task), torch.Generator())
        observation = suite.make(task).reset((0, 0), np.random.default_rng(0))
        assert observation.shape == (1,)
        assert observation.dtype == np.float32
        assert policy(torch.from_numpy(observation[None])).logits_BAK.shape == (1, 1, 4)


def test_an_unknown_task_names_the_nearest_one() -> None:
    """A misspelt task is answered with a suggestion."""
    suite = make_suite("gridworld", {})
    with pytest.raises(ConfigError, match="Did you mean 'gridworld-5x5'"):
        suite.make("gridworld-5x")


@pytest.mark.parametrize("width", [-0.1, 1.1])
def test_an_expert_width_that_is_no_probability_is_refused(width: float) -> None:
    """The expert's width is the share of uniform actions."""
    with pytest.raises(ConfigError, match="expert_width"):
        make_suite("gridworld", {"expert_width": width})


def test_right_then_down_solves_the_2x2_grid() -> None:
    """Two steps at -1 each, the second one terminates in success, and a third is refused."""
    environment = make_suite("gridworld", {}).make("gridworld-2x2")
    moves = iter((RIGHT, DOWN))
    first, second = run_episode(environment, (0, 0), lambda: next(moves), seed=0)
    assert (first.observation.tolist(), first.reward, first.terminated, first.success) == ([1.0], -1.0, False, False)
    assert (second.observation.tolist(), second.reward, second.terminated, second.success) == ([3.0], -1.0, True, True)
    with pytest.raises(ContractError, match="reset"):
        environment.step(np.array([UP], np.int16))


def test_a_step_before_the_first_reset_is_refused() -> None:
    """An environment has no state before its first episode."""
    with pytest.raises(ContractError, match="reset"):
        make_suite("gridworld", {}).make("gridworld-5x5").step(np.array([UP], np.int16))


def test_a_pit_ends_the_episode_in_failure() -> None:
    """Random walks end in a pit without reward or at the goal with reward 1; both happen."""
    environment = make_suite("gridworld", {}).make("gridworld-5x5")
    rng = np.random.default_rng(0)
    pits = {6.0, 13.0, 16.0}
    ends = [run_episode(environment, (0, i % 50), lambda: int(rng.integers(4)), seed=i)[-1] for i in range(300)]
    for end in ends:
        at_goal = end.observation[0] == 24.0
        assert at_goal or end.observation[0] in pits
        assert (end.terminated, end.success, end.reward) == (True, at_goal, float(at_goal))
    assert 0 < sum(end.success for end in ends) < 300


def test_a_goal_is_one_start_cell_whatever_the_dynamics_draw() -> None:
    """The same goal starts in the same cell, the goals of a seed cover all start cells, other seeds order them anew."""
    environment = make_suite("gridworld", {}).make("gridworld-5x5")

    def starts(goal_seed: int, rng_seed: int) -> list[float]:
        rng = np.random.default_rng(rng_seed)
        return [float(environment.reset((goal_seed, index), rng)[0]) for index in range(50)]

    assert starts(7, 0) == starts(7, 1)
    assert starts(7, 0) != starts(8, 0)
    assert set(starts(7, 0)) == {0.0, 1.0, 2.0, 5.0, 10.0, 11.0}
    with pytest.raises(IndexError):
        environment.reset((7, 50), np.random.default_rng(0))


def test_the_generator_of_reset_decides_the_episode() -> None:
    """Equal generators repeat an episode exactly; other generators give other episodes."""
    environment = make_suite("gridworld", {}).make("gridworld-5x5")
    episodes = [
        [float(t.observation[0]) for t in run_episode(environment, (0, 0), lambda: LEFT, seed=seed)]
        for seed in (1, 1, 2, 3, 4, 5)
    ]
    assert episodes[0] == episodes[1]
    assert len({tuple(episode) for episode in episodes}) > 1


@pytest.mark.parametrize(("width", "best", "other"), [(0.0, 1.0, 0.0), (0.4, 0.7, 0.1), (1.0, 0.25, 0.25)])
def test_the_expert_mixes_the_optimal_action_with_uniform(width: float, best: float, other: float) -> None:
    """1 - width on the optimal action plus width / 4 on each; in S0 of the 2x2 grid that action is down."""
    environment = make_suite("gridworld", {"expert_width": width}).make("gridworld-2x2")
    environment.reset((0, 0), np.random.default_rng(0))
    np.testing.assert_allclose(environment.expert(), [[other, best, other, other]])


def simulated_returns(suite: Suite, gamma: float, num_episodes: int) -> Floats:
    """Returns the discounted return of episodes acted by the suite's expert."""
    environment = suite.make("gridworld-5x5")
    rng = np.random.default_rng(0)
    returns = np.zeros(num_episodes)
    for i in range(num_episodes):
        transitions = run_episode(environment, divmod(i, 50), lambda: int(rng.choice(4, p=environment.expert()[0])), i)
        returns[i] = sum(gamma**t * transition.reward for t, transition in enumerate(transitions))
    return returns


def test_the_simulator_earns_what_the_exact_values_say() -> None:
    """The mean return of 1500 simulated expert episodes lies within 4 standard errors of start . V."""
    mdp = gridworld.slippery()
    policy = 0.7 * gridworld.optimal_policy(mdp) + 0.3 / 4
    returns = simulated_returns(make_suite("gridworld", {"expert_width": 0.3}), mdp.gamma, 1500)
    expected = float(mdp.start @ gridworld.state_values(mdp, policy))
    assert abs(returns.mean() - expected) < 4 * returns.std() / np.sqrt(len(returns))
    assert 0.3 < expected < 0.6


def test_the_study_policies_are_distributions() -> None:
    """All 3 targets and 7 behaviour policies are positive tables whose rows sum to one."""
    targets = gridworld.study_targets()
    assert list(targets) == ["PI-1", "PI-2", "PI-3"]
    for target in targets.values():
        behaviours = gridworld.study_behaviours(target)
        assert list(behaviours) == list("ABCDEFG")
        for table in (target, *behaviours.values()):
            assert table.shape == (4, 4)
            assert (table > 0).all()
            np.testing.assert_allclose(table.sum(1), 1.0, atol=1e-12)


def test_the_study_mixtures_match_hand_computations() -> None:
    """B and C mix uniform with e/(e+3) and 1/(e+3); E, F and G are mixed by hand; D is the target."""
    target = gridworld.study_targets()["PI-2"]
    behaviours = gridworld.study_behaviours(target)
    high, low = np.e / (np.e + 3), 1 / (np.e + 3)
    b_up, b_right = 0.1 + 0.6 * low, 0.1 + 0.3 * high + 0.3 * low
    c_up, c_right = 0.05 + 0.8 * low, 0.05 + 0.4 * high + 0.4 * low
    np.testing.assert_allclose(behaviours["A"], 0.25)
    np.testing.assert_allclose(behaviours["B"][0], [b_up, b_right, b_up, b_right])
    np.testing.assert_allclose(behaviours["C"][2], [c_up, c_right, c_up, c_right])
    np.testing.assert_array_equal(behaviours["D"], target)
    by_hand = {
        "E": [[0.297, 0.203, 0.283, 0.217], [0.328, 0.2015, 0.193, 0.2775], [0.224, 0.2775, 0.29, 0.2085]],
        "F": [[0.2045, 0.318, 0.182, 0.2955], [0.182, 0.4345, 0.191, 0.1925], [0.1525, 0.2185, 0.1945, 0.4345]],
        "G": [[0.212, 0.308, 0.2, 0.28], [0.18, 0.388, 0.227, 0.205], [0.202, 0.168, 0.216, 0.414]],
    }
    for name, rows in by_hand.items():
        np.testing.assert_allclose(behaviours[name][:3], rows)


def test_ascent_starts_where_it_is_told_and_raises_the_return() -> None:
    """Each exact gradient step raises J, which an independent forward walk measures; step 0 is the given policy."""
    mdp = gridworld.paper_2x2()
    policies = gridworld.ascent(mdp, np.zeros_like(mdp.reward), 8, rate=0.25)
    returns = [unroll(mdp, policy)[0] for policy in policies]
    assert policies[0] == pytest.approx(np.full((4, 4), 0.25))
    assert len(policies) == 9
    assert (np.diff(returns) > 0).all()


def test_one_step_of_ascent_is_rate_times_the_gradient() -> None:
    """The logits move by rate * dJ/d theta, up to what a softmax does not see."""
    mdp = random_mdp(np.random.default_rng(3))
    logits = np.random.default_rng(4).normal(size=mdp.reward.shape)
    before, after = gridworld.ascent(mdp, logits, 1, rate=0.1)
    moved = np.log(after) - np.log(before)
    expected = 0.1 * gridworld.policy_gradient(mdp, before)
    assert moved - moved.mean(1, keepdims=True) == pytest.approx(expected - expected.mean(1, keepdims=True))
