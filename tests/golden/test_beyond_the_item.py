"""Pins corrections that read more than an item's log-ratio and advantage to printed numbers and to closed forms.

The formulas are written out in plain Python floats, one item at a time, without torch. VESPO's table is a hand
computation from its objective, three digits.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from replaybench.baseline import Baseline, Items, SurrogateValue, evaluate_surrogate, load_baseline

LOG_RATIOS = (-3, -2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2, 3)
VESPO = {
    1.0: ".0429 .245 .902 1.20 1.09 1.00 .891 .388 .0426 ~0 ~0",
    -1.0: "8e-4 .014 .176 .490 .896 1.00 1.09 1.22 .646 .001 ~0",
}
Episode = list[tuple[float, float]]
pairs_of_numbers = st.tuples(st.floats(-1.5, 1.5), st.sampled_from([2.0, -0.5, 1.0, -3.0]))
batches = st.lists(st.lists(pairs_of_numbers, min_size=1, max_size=4), min_size=1, max_size=3)
quick = settings(max_examples=60, deadline=None)


@lru_cache
def loaded(name: str) -> Baseline:
    """The baseline, looked up once: a look-up walks the installed packages, and the properties below ask often."""
    return load_baseline(name)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def items_of(episodes: list[Episode]) -> Items:
    """Decisions of one item each, given as (log-ratio, advantage), with their episodes."""
    log_ratio = column([l for episode in episodes for l, _ in episode])
    return Items(
        log_pi=log_ratio - 8.0,
        log_mu=torch.full_like(log_ratio, -8.0),
        advantage=column([a for episode in episodes for _, a in episode]),
        mask=torch.ones_like(log_ratio, dtype=torch.bool),
        episode=torch.tensor([number for number, episode in enumerate(episodes) for _ in episode]),
    )


def evaluate(name: str, items: Items, **options: float) -> SurrogateValue:
    baseline = loaded(name)
    return evaluate_surrogate(baseline, baseline.config(options), items)


def scores(name: str, items: Items, **options: float) -> list[float]:
    return evaluate(name, items, **options).score.flatten().tolist()


@pytest.mark.parametrize("advantage", VESPO)
@pytest.mark.parametrize("column_of_the_table", range(len(LOG_RATIOS)))
def test_vespo_equals_the_printed_table(advantage: float, column_of_the_table: int) -> None:
    """Every cell holds to its last printed digit for an episode of three items whose log-ratios have that sum."""
    log_ratio, printed = LOG_RATIOS[column_of_the_table], VESPO[advantage].split()[column_of_the_table]
    episode = [(log_ratio - 0.7, advantage), (0.4, advantage), (0.3, advantage)]
    for score in scores("vespo", items_of([episode])):
        if printed == "~0":
            assert 0 < score / advantage < 1e-5
        else:
            mantissa, _, exponent = printed.partition("e")
            digits = len(mantissa.partition(".")[2])
            unit = 10.0 ** (int(exponent or 0) - digits)
            assert score / advantage == pytest.approx(float(printed), rel=0, abs=0.5 * unit * (1 + 1e-9))


def total(episode: Episode) -> float:
    return sum(l for l, _ in episode)


def mean(episode: Episode) -> float:
    return total(episode) / len(episode)


def gspo_by_hand(episode: Episode, log_ratio: float, advantage: float) -> float:
    ratio = math.exp(mean(episode))
    is_kept = ratio <= 1.2 if advantage > 0 else 0.9 <= ratio <= math.exp(10)
    return ratio * is_kept * advantage


def gmpo_by_hand(episode: Episode, log_ratio: float, advantage: float) -> float:
    mean_advantage = sum(a for _, a in episode) / len(episode)

    def clipped(l: float) -> float:
        return max(l, -0.4) if mean_advantage < 0 else min(l, 0.4)

    geometric = math.exp(sum(clipped(l) for l, _ in episode) / len(episode))
    return mean_advantage * geometric * (clipped(log_ratio) == log_ratio)


def vespo_by_hand(episode: Episode, log_ratio: float, advantage: float) -> float:
    ratio = max(math.exp(total(episode)), 1e-8)
    power, rate = (2, 3) if advantage > 0 else (3, 2)
    return math.exp(rate) * ratio**power * math.exp(-rate * ratio) * advantage


def opsm_by_hand(episode: Episode, log_ratio: float, advantage: float) -> float:
    ratio = math.exp(log_ratio)
    is_kept = ratio <= 1.2 if advantage > 0 else ratio >= 0.8 and -mean(episode) <= 1e-4
    return ratio * is_kept * advantage


def topr_by_hand(episode: Episode, log_ratio: float, advantage: float) -> float:
    return advantage if advantage > 0 else min(math.exp(total(episode)), 1.0) * advantage


class ByEpisode(NamedTuple):
    """The score of an item of an episode by hand: formula(episode, log-ratio, advantage)."""

    name: str
    options: dict[str, float]
    formula: Callable[[Episode, float, float], float]


BY_EPISODE = [
    ByEpisode("gspo", {"epsilon_low": 0.1, "epsilon_high": 0.2}, gspo_by_hand),
    ByEpisode("gmpo", {}, gmpo_by_hand),
    ByEpisode("vespo", {}, vespo_by_hand),
    ByEpisode("seq_tis", {}, lambda episode, l, a: min(math.exp(total(episode)), 2.0) * a),
    ByEpisode("vcpo", {}, lambda episode, l, a: min(math.exp(total(episode)), 8.0) * a),
    ByEpisode(
        "seq_mis", {}, lambda episode, l, a: math.exp(total(episode)) * a if math.exp(total(episode)) <= 3 else 0
    ),
    ByEpisode("geo_mask", {"band": 2.0}, lambda episode, l, a: a if 0.5 <= math.exp(mean(episode)) <= 2 else 0),
    ByEpisode("opsm", {}, opsm_by_hand),
    ByEpisode("topr_seq", {}, topr_by_hand),
]


@pytest.mark.parametrize("method", BY_EPISODE, ids=lambda method: method.name)
@quick
@given(episodes=batches)
@example(episodes=[[(0.05, 2.0), (0.0, -0.5)], [(1.0, 1.0)], [(-1.0, -3.0), (0.9, 2.0)]])
@example(episodes=[[(0.0, 1.0), (0.0, -1.0)], [(0.1, -0.5), (0.05, 2.0), (-0.05, -0.5)]])
def test_scores_of_an_episode_equal_the_closed_form(method: ByEpisode, episodes: list[Episode]) -> None:
    """Every item scores what its own episode says, for any number and length of episodes."""
    edges = [math.log(edge) for edge in (0.5, 0.8, 0.9, 1.2, 2.0, 3.0)] + [-1e-4, -0.4, 0.4]
    for episode in episodes:
        places = [total(episode), mean(episode), *(l for l, _ in episode)]
        # Sums round differently in another order, so no place may lie on an edge.
        assume(min(abs(place - edge) for place in places for edge in edges) > 1e-7)
        assume(abs(sum(a for _, a in episode)) > 1e-9 or method.name != "gmpo")
    expected = [method.formula(episode, l, a) for episode in episodes for l, a in episode]
    assert scores(method.name, items_of(episodes), **method.options) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("log_ratio", "expected"), [(9.9, math.exp(9.9)), (10.1, 0.0)])
def test_gspo_stops_at_the_clamp_of_its_log_ratio(log_ratio: float, expected: float) -> None:
    """Bad items count with e^9.9 below the clamp at 10, and have no gradient above."""
    assert scores("gspo", items_of([[(log_ratio, -1.0)]])) == pytest.approx([-expected], rel=1e-12)


def test_gspos_default_band_is_narrow() -> None:
    """At mean log-ratios of +-2e-4 both signs count, at 4.5e-4 only A < 0, at -4.5e-4 only A > 0."""
    for log_ratio, is_kept in ((2e-4, (1, 1)), (-2e-4, (1, 1)), (4.5e-4, (0, 1)), (-4.5e-4, (1, 0))):
        up, down = scores("gspo", items_of([[(log_ratio, 1.0)], [(log_ratio, -1.0)]]))
        assert (up != 0, down != 0) == is_kept


def prox_items(log_weight: float, log_inner: float, advantage: float) -> Items:
    """One item whose proximal policy is log_weight above mu and log_inner below pi."""
    items = items_of([[(log_weight + log_inner, advantage)]])
    return Items(
        log_pi=items.log_pi,
        log_mu=items.log_mu,
        advantage=items.advantage,
        mask=items.mask,
        log_prox=items.log_mu + log_weight,
    )


def decoupled_by_hand(weight: float, inner: float, advantage: float) -> float:
    is_inside = inner <= 1.3 if advantage > 0 else 0.7 <= inner <= 3.0
    return weight * inner * advantage if is_inside and weight <= 2.0 else 0.0


@quick
@given(log_weight=st.floats(-2, 2), log_inner=st.floats(-2, 2), advantage=st.sampled_from([2.0, -0.5]))
@example(log_weight=0.5, log_inner=0.2, advantage=2.0)
@example(log_weight=0.5, log_inner=1.0, advantage=-0.5)
@example(log_weight=0.5, log_inner=1.2, advantage=-0.5)
@example(log_weight=0.8, log_inner=0.0, advantage=2.0)
def test_decoupled_ppo_equals_its_closed_form(log_weight: float, log_inner: float, advantage: float) -> None:
    """The weight of the data times the ratio to the proximal policy, each with its own bound."""
    weight, inner = math.exp(log_weight), math.exp(log_inner)
    assume(min(abs(weight - 2), *(abs(inner - edge) for edge in (0.7, 1.3, 3.0))) > 1e-6)
    expected = decoupled_by_hand(weight, inner, advantage)
    actual = scores("decoupled_ppo", prox_items(log_weight, log_inner, advantage))
    assert actual == pytest.approx([expected], rel=1e-9)


@quick
@given(log_weight=st.floats(-2, 2), log_inner=st.floats(-2, 2), advantage=st.sampled_from([2.0, -0.5]))
@example(log_weight=1.0, log_inner=0.05, advantage=2.0)
@example(log_weight=1.0, log_inner=0.5, advantage=2.0)
@example(log_weight=1.0, log_inner=-0.5, advantage=-0.5)
def test_geppo_equals_its_closed_form(log_weight: float, log_inner: float, advantage: float) -> None:
    """The ratio to mu is clipped around that of the proximal policy, with a half-width of 0.2."""
    centre, ratio = math.exp(log_weight), math.exp(log_weight + log_inner)
    assume(min(abs(ratio - centre - 0.2), abs(ratio - centre + 0.2)) > 1e-6)
    is_inside = ratio <= centre + 0.2 if advantage > 0 else ratio >= centre - 0.2
    value = min(ratio * advantage, min(max(ratio, centre - 0.2), centre + 0.2) * advantage)
    actual = evaluate("geppo", prox_items(log_weight, log_inner, advantage))
    assert float(actual.score) == pytest.approx(ratio * advantage * is_inside, rel=1e-9)
    assert float(actual.surrogate) == pytest.approx(value, rel=1e-9)


@quick
@given(log_ratio=st.floats(-3, 3), lag=st.integers(0, 100), advantage=st.sampled_from([2.0, -0.5]))
@example(log_ratio=0.5, lag=0, advantage=2.0)
@example(log_ratio=0.5, lag=1, advantage=2.0)
@example(log_ratio=0.5, lag=2, advantage=2.0)
@example(log_ratio=1.5, lag=100, advantage=2.0)
def test_a3po_is_decoupled_ppo_with_an_interpolated_proximal_policy(
    log_ratio: float, lag: int, advantage: float
) -> None:
    """At lag d the weight is rho^((d-1)/d) and the clipped ratio rho^(1/d); at lags 0 and 1 it is PPO around mu."""
    share = 0.0 if lag == 0 else (lag - 1) / lag
    weight, inner = math.exp(share * log_ratio), math.exp((1 - share) * log_ratio)
    assume(min(abs(weight - 2), *(abs(inner - edge) for edge in (0.7, 1.3, 3.0))) > 1e-6)
    items = items_of([[(log_ratio, advantage)]])
    with_lag = Items(
        log_pi=items.log_pi,
        log_mu=items.log_mu,
        advantage=items.advantage,
        mask=items.mask,
        lag_updates=torch.tensor([lag]),
    )
    assert scores("a3po", with_lag) == pytest.approx([decoupled_by_hand(weight, inner, advantage)], rel=1e-9)


def ess_by_hand(weights: list[float]) -> float:
    return sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))


@quick
@given(episode=st.lists(pairs_of_numbers, min_size=1, max_size=6))
@example(episode=[(1.0, 2.0), (-1.0, -0.5)])
def test_p3o_equals_its_closed_form(episode: Episode) -> None:
    """The ratio is capped at the effective sample fraction, and what is missing to 1 pulls by 1 - 1 / rho."""
    ess = ess_by_hand([math.exp(l) for l, _ in episode])
    expected = [min(math.exp(l), ess) * a - (1 - ess) * (1 - math.exp(-l)) for l, a in episode]
    assert scores("p3o", items_of([episode])) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@quick
@given(episodes=batches)
@example(episodes=[[(0.5, 1.0), (0.5, 1.0)], [(-1.0, 1.0)]])
def test_vcpo_scales_the_learning_rate_by_the_ess_of_episodes(episodes: list[Episode]) -> None:
    """The square root of the effective sample fraction of the episodes' product ratios; half of it is whole at 0.5."""
    ess = ess_by_hand([math.exp(total(episode)) for episode in episodes])
    baseline = loaded("vcpo")
    assert baseline.learning_rate_scale is not None
    for base in (1.0, 0.5):
        scale = baseline.learning_rate_scale(items_of(episodes), baseline.config({"base_ess_ratio": base}))
        assert scale == pytest.approx(math.sqrt(min(1.0, ess / base)), rel=1e-9)


def test_staleness_sampling_draws_by_the_reciprocal_of_lag_plus_one() -> None:
    """By hand: lags 0, 1, 3 and 9 have weights 1, 1/2, 1/4 and 1/10."""
    baseline = loaded("staleness_sampling")
    assert baseline.sampling_weight is not None
    weight = baseline.sampling_weight(torch.tensor([0, 1, 3, 9]), baseline.config())
    assert weight.tolist() == [1.0, 0.5, 0.25, 0.1]


def coin_items(pi: float, mu: float, advantage: float) -> Items:
    """One action out of two, of probability pi now and mu when it was logged."""
    return Items(
        log_pi=column([math.log(pi)]),
        log_mu=column([math.log(mu)]),
        advantage=column([advantage]),
        mask=torch.ones(1, 1, dtype=torch.bool),
        logits=column([math.log(pi), math.log(1 - pi)]).reshape(1, 1, 2),
        mu_logits=column([math.log(mu), math.log(1 - mu)]).reshape(1, 1, 2),
    )


@quick
@given(pi=st.floats(0.02, 0.98), mu=st.floats(0.02, 0.98), advantage=st.sampled_from([2.0, -0.5]))
@example(pi=0.7, mu=0.5, advantage=2.0)
@example(pi=0.7, mu=0.5, advantage=-0.5)
@example(pi=0.3, mu=0.5, advantage=-0.5)
@example(pi=0.55, mu=0.5, advantage=2.0)
def test_trust_regions_in_exact_kl_equal_their_closed_forms(pi: float, mu: float, advantage: float) -> None:
    """Outside, where the item would move on, TR-PPO scores 0 and Truly PPO adds -5 grad KL(mu||pi) on the logits.

    The gradient of KL(mu||pi) by the logits is pi - mu, by differentiating the log of the normaliser by hand.
    """
    kl = mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi))
    assume(abs(kl - 0.03) > 1e-6)
    is_outside = kl >= 0.03 and (pi - mu) * advantage > 0
    ratio = pi / mu
    items = coin_items(pi, mu, advantage)
    assert scores("tr_ppo", items) == pytest.approx([0.0 if is_outside else ratio * advantage], rel=1e-9)
    truly = evaluate("truly_ppo", items)
    assert float(truly.score) == pytest.approx(ratio * advantage, rel=1e-9)
    assert float(truly.surrogate) == pytest.approx(ratio * advantage - 5 * kl * is_outside, rel=1e-9)
    assert truly.logits_score is not None
    pull = -5 * (pi - mu) * is_outside
    assert truly.logits_score.flatten().tolist() == pytest.approx([pull, -pull], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "name", ["gspo", "gmpo", "seq_tis", "seq_mis", "geo_mask", "opsm", "vcpo", "decoupled_ppo", "geppo", "tr_ppo"]
)
def test_knob_widens_what_is_let_through(name: str) -> None:
    """Turned up, the knob never takes weight away, and from its first to its last value it adds some."""
    baseline = loaded(name)
    knob = baseline.declaration.knob
    assert knob is not None
    assert knob.wider
    amounts = []
    for value in knob.sweep:
        config = baseline.config({knob.field: value})
        amounts.append(0.0)
        for hundredths in range(-150, 151, 5):
            for advantage in (1.0, -1.0):
                log_ratio = hundredths / 100
                if name == "tr_ppo":
                    pi, mu = (0.3, 0.3 * math.exp(-log_ratio)) if log_ratio > 0 else (0.3 * math.exp(log_ratio), 0.3)
                    items = coin_items(pi, mu, advantage)
                elif "log_prox" in baseline.declaration.needs:
                    items = prox_items(log_ratio / 2, log_ratio / 2, advantage)
                else:
                    # A mean of a hundredth of l exercises the narrow bands too.
                    items = items_of([[(log_ratio, advantage)], [(log_ratio / 100, advantage)]])
                amounts[-1] += float(evaluate_surrogate(baseline, config, items).score.abs().sum())
    assert all(narrow <= wide + 1e-9 for narrow, wide in pairwise(amounts))
    assert amounts[0] < amounts[-1]
