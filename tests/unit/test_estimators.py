"""Every advantage estimator against slow twins and hand computations.

The twins sum the papers' series forward, term by term, one episode at a time; action values are checked against the
exact ones of the 2x2 grid by enumerating every path.
"""

import inspect
import math
import random
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replaybench.errors import ConfigError, ContractError
from replaybench.estimators import ESTIMATORS, NEEDS, Columns, Parameters, find_estimator
from replaybench.maths import advantages as maths
from replaybench.maths.advantages import Advantages
from replaybench.suites import gridworld

Floats = NDArray[np.float64]
quick = settings(max_examples=40, deadline=None)
PLAIN = Parameters(gamma=0.9, lam=0.8, rho_bar=1.2, c_bar=0.9, alpha=0.7)


class Walk(NamedTuple):
    """One episode; `after` is what follows the last step, 0 if it ended, a bootstrapped value if it was cut."""

    reward: Floats
    value: Floats
    q: Floats
    log_ratio: Floats
    log_pi: Floats
    after: float
    group: int


def make_walk(length: int, group: int, seed: int) -> Walk:
    rng = np.random.default_rng([length, group, seed])
    after = 0.0 if rng.random() < 0.5 else float(rng.normal())
    reward, value, q, log_ratio = rng.normal(size=(4, length))
    return Walk(reward, value, q, log_ratio, -rng.exponential(size=length), after, group)


def draw_walks(lengths: list[int], seed: int) -> list[Walk]:
    """Two groups, each of two episodes at least."""
    return [make_walk(length, index % 2, seed + index) for index, length in enumerate(lengths)]


walks_of_two_groups = st.builds(draw_walks, st.lists(st.integers(1, 5), min_size=4, max_size=7), st.integers(0, 2**30))


def following(walk: Walk) -> Floats:
    return np.append(walk.value[1:], walk.after)


def pack(walks: list[Walk]) -> Columns:
    ends = [step == len(walk.reward) - 1 for walk in walks for step in range(len(walk.reward))]
    return Columns(
        reward=np.concatenate([walk.reward for walk in walks]),
        value=np.concatenate([walk.value for walk in walks]),
        next_value=np.concatenate([following(walk) for walk in walks]),
        ends=np.array(ends),
        log_ratio=np.concatenate([walk.log_ratio for walk in walks]),
        log_pi=np.concatenate([walk.log_pi for walk in walks]),
        group=np.array([walk.group for walk in walks]),
        action_value=np.concatenate([walk.q for walk in walks]),
    )


def cut(values: Floats, walks: list[Walk]) -> list[Floats]:
    """Undoes the packing."""
    return np.split(values, np.cumsum([len(walk.reward) for walk in walks])[:-1])


def slow_return(walk: Walk, start: int, gamma: float) -> float:
    """sum_k gamma^k r_{t+k} to the end, and the discounted value of what was cut off."""
    steps = len(walk.reward) - start
    rewards = sum(gamma**k * float(walk.reward[start + k]) for k in range(steps))
    return rewards + gamma**steps * walk.after


def slow_returns(walk: Walk, gamma: float) -> list[float]:
    return [slow_return(walk, start, gamma) for start in range(len(walk.reward))]


def leaky(log_ratio: float, bar: float, alpha: float) -> float:
    ratio = math.exp(log_ratio)
    return alpha * min(bar, ratio) + (1 - alpha) * ratio


def slow_vtrace(walk: Walk, p: Parameters, alpha: float) -> tuple[list[float], list[float]]:
    """Advantages r + gamma v' - V and targets v of IMPALA's equation 1, with leaking truncations."""
    after, steps = following(walk), len(walk.reward)
    delta = [walk.reward[t] + p.gamma * after[t] - walk.value[t] for t in range(steps)]
    target = []
    for s in range(steps):
        total = float(walk.value[s])
        for t in range(s, steps):
            trace = math.prod(p.lam * leaky(walk.log_ratio[i], p.c_bar, alpha) for i in range(s, t))
            total += p.gamma ** (t - s) * trace * leaky(walk.log_ratio[t], p.rho_bar, alpha) * delta[t]
        target.append(total)
    advantage = [
        walk.reward[t] + p.gamma * (target[t + 1] if t + 1 < steps else walk.after) - walk.value[t]
        for t in range(steps)
    ]
    return advantage, target


def slow_q_target(walk: Walk, p: Parameters, trace: list[float]) -> list[float]:
    """Equation 3 of the Retrace paper: the trace's product runs over the steps *after* the one whose Q it is."""
    after, steps = following(walk), len(walk.reward)
    delta = [walk.reward[t] + p.gamma * after[t] - walk.q[t] for t in range(steps)]
    return [
        float(walk.q[s]) + sum(p.gamma ** (t - s) * math.prod(trace[s + 1 : t + 1]) * delta[t] for t in range(s, steps))
        for s in range(steps)
    ]


def estimate(name: str, walks: list[Walk], p: Parameters = PLAIN) -> Advantages:
    return find_estimator(name).estimate(pack(walks), p)


def assert_per_walk(actual: Floats, walks: list[Walk], expected: Callable[[Walk], list[float]]) -> None:
    for found, walk in zip(cut(actual, walks), walks, strict=True):
        np.testing.assert_allclose(found, expected(walk), rtol=1e-9, atol=1e-11)


@quick
@given(walks=walks_of_two_groups, gamma=st.floats(0, 1))
def test_monte_carlo_equals_the_discounted_sum(walks: list[Walk], gamma: float) -> None:
    """Target: rewards to the end of the own episode and the discounted value at a cut; advantage: minus the value."""
    found = estimate("monte_carlo", walks, PLAIN._replace(gamma=gamma))
    assert_per_walk(found.value_target, walks, lambda walk: slow_returns(walk, gamma))
    assert_per_walk(
        found.advantage, walks, lambda walk: [g - v for g, v in zip(slow_returns(walk, gamma), walk.value, strict=True)]
    )


def test_monte_carlo_equals_the_hand_computation() -> None:
    """Gamma = 1/2: an episode that ends, 1 + 2/2 = 2; one that is cut at a value of 6, 4 + 6/2 = 7."""
    found = maths.monte_carlo(
        np.array([1.0, 2.0, 4.0]),
        np.array([0.5, 1.0, 8.0]),
        np.array([1.0, 0.0, 6.0]),
        np.array([False, True, True]),
        gamma=0.5,
    )
    assert found.value_target.tolist() == [2.0, 2.0, 7.0]
    assert found.advantage.tolist() == [1.5, 1.0, -1.0]


@quick
@given(walks=walks_of_two_groups, alpha=st.floats(0, 1))
def test_leaky_vtrace_equals_the_series_with_mixed_ratios(walks: list[Walk], alpha: float) -> None:
    """Both the error's and the traces' truncated ratios are mixed with the whole ones."""
    p = PLAIN._replace(alpha=alpha)
    found = estimate("leaky_vtrace", walks, p)
    assert_per_walk(found.advantage, walks, lambda walk: slow_vtrace(walk, p, alpha)[0])
    assert_per_walk(found.value_target, walks, lambda walk: slow_vtrace(walk, p, alpha)[1])


@quick
@given(walks=walks_of_two_groups)
def test_leaky_vtrace_without_a_leak_is_vtrace_bit_by_bit(walks: list[Walk]) -> None:
    """At alpha = 1 nothing leaks; below, something does; plain V-trace never reads alpha."""
    plain = estimate("vtrace", walks)
    assert estimate("leaky_vtrace", walks, PLAIN._replace(alpha=1.0)).advantage.tolist() == plain.advantage.tolist()
    assert estimate("vtrace", walks, PLAIN._replace(alpha=0.1)).value_target.tolist() == plain.value_target.tolist()
    beyond = [walk._replace(log_ratio=walk.log_ratio + 5) for walk in walks]
    assert estimate("leaky_vtrace", beyond).value_target.tolist() != estimate("vtrace", beyond).value_target.tolist()


@quick
@given(walks=walks_of_two_groups)
def test_the_policy_gradients_ratio_multiplies_the_advantage_by_name_only(walks: list[Walk]) -> None:
    """rho_pg is min(rho_bar, rho) on the V-trace advantage; the targets are V-trace's; "vtrace" leaves it out."""
    plain = estimate("vtrace", walks)
    assert_per_walk(plain.advantage, walks, lambda walk: slow_vtrace(walk, PLAIN, 1.0)[0])
    for name in ("vtrace_rho_pg", "vtrace_double_correction"):
        found = estimate(name, walks)
        assert found.value_target.tolist() == plain.value_target.tolist()
        assert_per_walk(
            found.advantage,
            walks,
            lambda walk: [
                min(1.2, math.exp(l)) * a for l, a in zip(walk.log_ratio, slow_vtrace(walk, PLAIN, 1.0)[0], strict=True)
            ],
        )


def rivals(walk: Walk, walks: list[Walk]) -> list[float]:
    """Returns of the episodes of the same group, itself included."""
    return [slow_return(other, 0, 0.9) for other in walks if other.group == walk.group]


def deviation(returns: list[float]) -> float:
    mean = sum(returns) / len(returns)
    return math.sqrt(sum((r - mean) ** 2 for r in returns) / (len(returns) - 1))


@quick
@given(walks=walks_of_two_groups)
def test_group_relative_advantages_equal_the_written_formulas(walks: list[Walk]) -> None:
    """GRPO, Dr. GRPO and RLOO, episode by episode from lists of returns; the same for every step of an episode."""

    def grpo(walk: Walk) -> float:
        returns = rivals(walk, walks)
        return (slow_return(walk, 0, 0.9) - sum(returns) / len(returns)) / (deviation(returns) + 1e-6)

    def dr_grpo(walk: Walk) -> float:
        returns = rivals(walk, walks)
        return slow_return(walk, 0, 0.9) - sum(returns) / len(returns)

    def rloo(walk: Walk) -> float:
        others = [slow_return(o, 0, 0.9) for o in walks if o.group == walk.group and o is not walk]
        return slow_return(walk, 0, 0.9) - sum(others) / len(others)

    for name, formula in {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}.items():
        found = estimate(name, walks)
        for advantages, walk in zip(cut(found.advantage, walks), walks, strict=True):
            np.testing.assert_allclose(advantages, [formula(walk)] * len(walk.reward), rtol=1e-9, atol=1e-11)
        assert_per_walk(found.value_target, walks, lambda walk: slow_returns(walk, 0.9))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Mean 3, deviation sqrt((4 + 1 + 1 + 4) / 3).
        ("grpo", [x / (math.sqrt(10 / 3) + 1e-6) for x in (-2, -2, -1, 1, 2)]),
        ("dr_grpo", [-2, -2, -1, 1, 2]),
        # 1 - (2 + 4 + 5) / 3, 2 - (1 + 4 + 5) / 3, 4 - (1 + 2 + 5) / 3, 5 - (1 + 2 + 4) / 3.
        ("rloo", [-8 / 3, -8 / 3, -4 / 3, 4 / 3, 8 / 3]),
    ],
)
def test_group_relative_advantages_equal_the_hand_computation(name: str, expected: list[float]) -> None:
    """Returns 1 (of two steps), 2, 4 and 5 at gamma = 1, the last one 3 and a bootstrapped 2."""
    columns = Columns(
        reward=np.array([0.0, 1.0, 2.0, 4.0, 3.0]),
        value=np.zeros(5),
        next_value=np.array([9.0, 0.0, 0.0, 0.0, 2.0]),
        ends=np.array([False, True, True, True, True]),
        group=np.zeros(4, np.int64),
    )
    found = find_estimator(name).estimate(columns, PLAIN._replace(gamma=1.0))
    assert found.advantage.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_group_never_reaches_into_another(name: str) -> None:
    """Whatever the episodes of group 1 earned, those of group 0 keep their advantages."""
    walks = draw_walks([3, 2, 4, 1, 2], seed=1)
    richer = [walk._replace(reward=walk.reward + 100) if walk.group == 1 else walk for walk in walks]
    before, after = (cut(estimate(name, group).advantage, group) for group in (walks, richer))
    for index, walk in enumerate(walks):
        assert (before[index].tolist() == after[index].tolist()) or walk.group == 1


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_equal_returns_carry_no_signal(name: str) -> None:
    """A group whose episodes all earned the same has advantage 0 and not 0 / 0."""
    walks = [make_walk(2, 0, 5)] * 3
    assert estimate(name, walks).advantage.tolist() == pytest.approx([0.0] * 6, abs=1e-9)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_group_of_one_is_refused(name: str) -> None:
    """One episode cannot be compared with itself."""
    with pytest.raises(ContractError, match="group of one episode"):
        estimate(name, [make_walk(3, 0, 1), make_walk(2, 0, 2), make_walk(2, 1, 3)])


@quick
@given(walks=walks_of_two_groups)
def test_reinforce_pp_normalises_returns_to_go_over_all_steps(walks: list[Walk]) -> None:
    """Plain sums over the returns to go of all steps of all episodes, whatever their group."""
    everything = [g for walk in walks for g in slow_returns(walk, 0.9)]
    mean = sum(everything) / len(everything)
    found = estimate("reinforce_pp", walks)
    assert_per_walk(
        found.advantage,
        walks,
        lambda walk: [(g - mean) / (deviation(everything) + 1e-8) for g in slow_returns(walk, 0.9)],
    )
    assert_per_walk(found.value_target, walks, lambda walk: slow_returns(walk, 0.9))


def test_normalising_a_single_step_is_refused() -> None:
    """The deviation of one number is no number."""
    with pytest.raises(ContractError, match="two at least"):
        estimate("reinforce_pp", [make_walk(1, 0, 1)])


@quick
@given(walks=walks_of_two_groups, lam=st.floats(0, 1))
def test_retrace_equals_the_papers_series(walks: list[Walk], lam: float) -> None:
    """Traces lam min(1, rho) of the later steps; the advantage subtracts the state's value."""
    p = PLAIN._replace(lam=lam)

    def target(walk: Walk) -> list[float]:
        return slow_q_target(walk, p, [lam * min(1.0, math.exp(l)) for l in walk.log_ratio])

    found = estimate("retrace", walks, p)
    assert_per_walk(found.value_target, walks, target)
    assert_per_walk(found.advantage, walks, lambda walk: (np.array(target(walk)) - walk.value).tolist())


@quick
@given(walks=walks_of_two_groups, lam=st.floats(0, 1))
def test_tree_backup_equals_the_series_with_the_policys_probabilities(walks: list[Walk], lam: float) -> None:
    """Traces lam pi(a|s) of the later steps; the behaviour policy's probabilities change nothing."""
    p = PLAIN._replace(lam=lam)

    def target(walk: Walk) -> list[float]:
        return slow_q_target(walk, p, [lam * math.exp(l) for l in walk.log_pi])

    found = estimate("tree_backup", walks, p)
    assert_per_walk(found.value_target, walks, target)
    assert_per_walk(found.advantage, walks, lambda walk: (np.array(target(walk)) - walk.value).tolist())
    elsewhere = [walk._replace(log_ratio=walk.log_ratio + 3) for walk in walks]
    assert estimate("tree_backup", elsewhere, p).advantage.tolist() == found.advantage.tolist()


@pytest.mark.parametrize(("name", "expected"), [("retrace", [4.0, 5.0]), ("tree_backup", [3.5, 5.0])])
def test_action_value_targets_equal_the_hand_computation(name: str, expected: list[float]) -> None:
    """Gamma = 1, lam = 1, Q = (1, 3), V = (0, 1), rewards (2, 5) and an end; rho = 1/2 and pi = 1/4 at the second step.

    Second step: 5. First: 2 + V' = 3, and the trace of the second step times its error 5 - 3: 1/2 or 1/4 of 2.
    """
    columns = Columns(
        reward=np.array([2.0, 5.0]),
        value=np.array([0.0, 1.0]),
        next_value=np.array([1.0, 0.0]),
        ends=np.array([False, True]),
        log_ratio=np.log([8.0, 0.5]),
        log_pi=np.log([0.9, 0.25]),
        action_value=np.array([1.0, 3.0]),
    )
    found = find_estimator(name).estimate(columns, PLAIN._replace(gamma=1.0, lam=1.0))
    assert found.value_target.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["retrace", "tree_backup"])
@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_the_exact_action_values_are_the_fixed_point(name: str, lam: float) -> None:
    """On the 2x2 grid, given the exact Q of the target policy, the mean target over all paths of any mu is Q again.

    All paths of three actions from the start are enumerated with their probabilities under the uniform policy; a path
    that has not ended is cut there and bootstraps.
    """
    mdp, pi = gridworld.paper_2x2(), gridworld.study_targets()["PI-2"]
    mu = np.full((4, 4), 0.25)
    v, q = gridworld.state_values(mdp, pi), gridworld.action_values(mdp, pi)
    mean, weight = np.zeros(4), np.zeros(4)
    for actions in product(range(4), repeat=3):
        states = [0]
        for action in actions:
            if not mdp.terminal[states[-1]]:
                states.append(int(mdp.transition[states[-1], action].argmax()))
        taken = list(zip(states[:-1], actions, strict=False))
        probability = math.prod(mu[s, a] for s, a in taken) * 0.25 ** (3 - len(taken))
        columns = Columns(
            reward=np.array([mdp.reward[s, a] for s, a in taken]),
            value=v[states[:-1]],
            next_value=v[states[1:]],
            ends=np.arange(len(taken)) == len(taken) - 1,
            log_ratio=np.log([pi[s, a] / mu[s, a] for s, a in taken]),
            log_pi=np.log([pi[s, a] for s, a in taken]),
            action_value=np.array([q[s, a] for s, a in taken]),
        )
        found = find_estimator(name).estimate(columns, PLAIN._replace(gamma=mdp.gamma, lam=lam))
        mean[actions[0]] += probability * found.value_target[0]
        weight[actions[0]] += probability
    np.testing.assert_allclose(mean / weight, q[0], rtol=1e-10)


@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_retrace_moves_wrong_action_values_towards_the_exact_ones(lam: float) -> None:
    """From Q = 0 the mean target is nearer to the exact Q than 0 is, at any lambda (the operator contracts).

    By enumeration of all paths of six actions of the uniform policy from the start of the 2x2 grid.
    """
    mdp, pi = gridworld.paper_2x2(), gridworld.study_targets()["PI-1"]
    exact = gridworld.action_values(mdp, pi)[0]
    mean = np.zeros(4)
    for actions in product(range(4), repeat=6):
        states = [0]
        for action in actions:
            if not mdp.terminal[states[-1]]:
                states.append(int(mdp.transition[states[-1], action].argmax()))
        taken = list(zip(states[:-1], actions, strict=False))
        zeros = np.zeros(len(taken))
        found = maths.retrace(
            np.array([mdp.reward[s, a] for s, a in taken]),
            zeros,
            zeros,
            np.arange(len(taken)) == len(taken) - 1,
            zeros,
            np.log([pi[s, a] / 0.25 for s, a in taken]),
            gamma=mdp.gamma,
            lam=lam,
        )
        mean[actions[0]] += found.value_target[0] / 4**5
    assert np.abs(mean - exact).max() < mdp.gamma * np.abs(exact).max()


@pytest.mark.parametrize("name", ESTIMATORS)
@quick
@given(walks=walks_of_two_groups, order=st.randoms(use_true_random=False))
def test_the_order_of_packing_does_not_matter(name: str, walks: list[Walk], order: random.Random) -> None:
    """Each episode has the same advantages and targets wherever it is packed."""
    shuffled = list(range(len(walks)))
    order.shuffle(shuffled)
    found, other = estimate(name, walks), estimate(name, [walks[i] for i in shuffled])
    for one, another in zip(found, other, strict=True):
        pieces, moved = cut(one, walks), cut(another, [walks[i] for i in shuffled])
        for place, i in enumerate(shuffled):
            np.testing.assert_allclose(moved[place], pieces[i], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"grpo", "dr_grpo", "rloo", "reinforce_pp"}))
def test_an_episode_does_not_see_its_neighbours(name: str) -> None:
    """Where nothing is compared, an episode packed between others has what it has alone."""
    walks = draw_walks([3, 4, 2, 1], seed=8)
    together = cut(estimate(name, walks).advantage, walks)
    for walk, found in zip(walks, together, strict=True):
        np.testing.assert_allclose(found, estimate(name, [walk]).advantage, rtol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_was_cut_off_counts_with_its_value(name: str) -> None:
    """A truncated episode's last value moves its advantages; after a termination it is 0 and nothing else."""
    walks = [walk._replace(after=0.0) for walk in draw_walks([3, 2, 3, 2], seed=4)]
    cut_off = [walks[0]._replace(after=2.0), *walks[1:]]
    before, after = (cut(estimate(name, some).advantage, some)[0] for some in (walks, cut_off))
    assert (after != before).any()
    assert after[-1] > before[-1]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_last_packed_step_may_lie_inside_an_episode(name: str) -> None:
    """A sequence that stops without an end is cut there: the same as with the end marked."""
    walks = draw_walks([3, 2, 3, 2], seed=4)
    closed = pack(walks)
    values = {field: getattr(closed, field) for field in Columns.__dataclass_fields__}
    opened = Columns(**values | {"ends": np.append(closed.ends[:-1], False)})
    found = find_estimator(name).estimate(opened, PLAIN)
    expected = find_estimator(name).estimate(closed, PLAIN)
    assert found.advantage.tolist() == expected.advantage.tolist()
    assert found.value_target.tolist() == expected.value_target.tolist()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_estimator_reads_what_it_declares_and_no_more(name: str) -> None:
    """With its own columns alone it estimates the same; without one of them it says which is missing."""
    columns = {"log_ratio": "log_ratio", "log_pi": "log_pi", "groups": "group", "action_values": "action_value"}
    estimator, full = ESTIMATORS[name], pack(draw_walks([3, 2, 4, 1], seed=6))
    assert set(estimator.needs) <= set(NEEDS) == set(columns)
    values = {field: getattr(full, field) for field in Columns.__dataclass_fields__}
    unneeded = {column: None for need, column in columns.items() if need not in estimator.needs}
    bare = estimator.estimate(Columns(**values | unneeded), PLAIN)
    assert bare.advantage.tolist() == estimator.estimate(full, PLAIN).advantage.tolist()
    for need in estimator.needs:
        with pytest.raises(ContractError, match=f"reads '{need}'"):
            estimator.estimate(Columns(**values | {columns[need]: None}), PLAIN)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_table_is_keyed_by_name_and_gives_sources(name: str) -> None:
    """Each row has its own name, a summary, and an arXiv id that stands in a docstring of the maths, or none."""
    estimator = ESTIMATORS[name]
    assert estimator.name == name
    assert estimator.summary
    documented = "".join(
        inspect.getdoc(function) or "" for _, function in inspect.getmembers(maths, inspect.isfunction)
    )
    assert estimator.arxiv is None or f"arXiv {estimator.arxiv}" in documented.replace("\n", " ").replace("    ", "")


@pytest.mark.parametrize(
    "name", ["gae", "vtrace", "vtrace_with_rho_pg", "monte_carlo", "grpo", "dr_grpo", "rloo", "reinforce_pp", "retrace"]
)
def test_every_equation_names_its_source(name: str) -> None:
    """The docstring has an equation and a source with an arXiv id, or says that there is none."""
    text = inspect.getdoc(getattr(maths, name)) or ""
    assert "=" in text or "advantage is" in text
    assert "Source:" in text
    assert "arXiv" in text


def test_an_unknown_estimator_gets_the_nearest_one() -> None:
    """A misspelt name is answered with a suggestion and the list."""
    with pytest.raises(ConfigError, match="Unknown advantage estimator 'vtrase'. Did you mean 'vtrace'.*retrace"):
        find_estimator("vtrase")


@pytest.mark.parametrize("column", ["reward", "value", "next_value", "ends", "log_ratio", "log_pi", "action_value"])
def test_columns_of_another_length_are_refused(column: str) -> None:
    """A column that is a step too long is a ContractError for every estimator that reads it, and never broadcast."""
    full = pack(draw_walks([3, 2, 4, 1], seed=6))
    values = {field: getattr(full, field) for field in Columns.__dataclass_fields__}
    longer = Columns(**values | {column: np.append(values[column], values[column][-1:])})
    readers = {"log_ratio": ["vtrace", "retrace"], "log_pi": ["tree_backup"], "action_value": ["retrace"]}
    for name in readers.get(column, ["gae", "monte_carlo", "vtrace", "retrace"]):
        with pytest.raises(ContractError, match="has shape"):
            ESTIMATORS[name].estimate(longer, PLAIN)
