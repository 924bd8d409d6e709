"""Tests of the pure maths against slow independent twins and other libraries.

The twins of the advantage estimators sum the papers' series term by term, episode by episode; scipy and exact
enumeration check the distances between policies.
"""

import math
from itertools import product

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replaybench.errors import ContractError
from replaybench.maths.advantages import gae, vtrace
from replaybench.maths.ratios import categorical_entropy, categorical_kl, off_policyness, quantile, token_log_prob
from replaybench.maths.shapes import check_shapes

Floats = NDArray[np.float64]
quick = settings(max_examples=50, deadline=None)


class Packed:
    """Random episodes packed end to end; a length is drawn for each, and whether it ended or was cut."""

    def __init__(self, lengths: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.slices = [slice(end - length, end) for length, end in zip(lengths, np.cumsum(lengths), strict=True)]
        steps = sum(lengths)
        self.reward: Floats = rng.normal(size=steps)
        self.value: Floats = rng.normal(size=steps)
        self.log_ratio: Floats = rng.normal(size=steps)
        self.next_value: Floats = np.append(self.value[1:], 0.0)
        self.ends: NDArray[np.bool_] = np.zeros(steps, dtype=bool)
        for piece in self.slices:
            self.ends[piece.stop - 1] = True
            # A terminal step bootstraps from 0, a cut one from a value that is in no other row.
            self.next_value[piece.stop - 1] = 0.0 if rng.random() < 0.5 else rng.normal()


packs = st.builds(Packed, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**31))
fractions = st.floats(0.0, 1.0)


def slow_gae(data: Packed, gamma: float, lam: float) -> Floats:
    """A_t = sum_k (gamma lam)^k delta_{t+k} to the end of the episode, term by term."""
    out = np.zeros_like(data.reward)
    for piece in data.slices:
        for t in range(piece.start, piece.stop):
            for k in range(piece.stop - t):
                delta = data.reward[t + k] + gamma * data.next_value[t + k] - data.value[t + k]
                out[t] += (gamma * lam) ** k * delta
    return out


def slow_vtrace_target(data: Packed, gamma: float, lam: float, rho_bar: float, c_bar: float) -> Floats:
    """v_s = V(x_s) + sum_t gamma^(t-s) (prod_{s<=i<t} c_i) rho_t delta_t, term by term (IMPALA, eq. 1)."""
    out = data.value.copy()
    for piece in data.slices:
        for s in range(piece.start, piece.stop):
            for t in range(s, piece.stop):
                trace = math.prod(lam * min(c_bar, math.exp(data.log_ratio[i])) for i in range(s, t))
                rho = min(rho_bar, math.exp(data.log_ratio[t]))
                delta = data.reward[t] + gamma * data.next_value[t] - data.value[t]
                out[s] += gamma ** (t - s) * trace * rho * delta
    return out


@quick
@given(data=packs, gamma=fractions, lam=fractions)
def test_gae_equals_the_sum_of_discounted_errors(data: Packed, gamma: float, lam: float) -> None:
    """The backward recursion over packed episodes is the papers' series in each episode, and the target adds V."""
    actual = gae(data.reward, data.value, data.next_value, data.ends, gamma=gamma, lam=lam)
    expected = slow_gae(data, gamma, lam)
    np.testing.assert_allclose(actual.advantage, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(actual.value_target, expected + data.value, rtol=1e-10, atol=1e-12)


def test_gae_equals_the_hand_computation() -> None:
    """Two episodes, gamma = 1/2 and lambda = 1/2, by hand; the second episode's values do not reach the first."""
    actual = gae(
        np.array([1.0, 2.0, 4.0]),
        np.array([0.0, 1.0, 8.0]),
        np.array([1.0, 0.0, 6.0]),
        np.array([False, True, True]),
        gamma=0.5,
        lam=0.5,
    )
    # delta = 1 + .5 - 0, 2 + 0 - 1, 4 + 3 - 8; A_0 = 1.5 + .25 * 1.
    assert actual.advantage.tolist() == [1.75, 1.0, -1.0]
    assert actual.value_target.tolist() == [1.75, 2.0, 7.0]


@quick
@given(data=packs, gamma=fractions)
def test_gae_with_lambda_one_is_the_return_minus_the_value(data: Packed, gamma: float) -> None:
    """At lambda = 1 the values inside an episode cancel and the discounted return to its end remains."""
    actual = gae(data.reward, data.value, data.next_value, data.ends, gamma=gamma, lam=1.0)
    for piece in data.slices:
        returns = gamma ** (piece.stop - piece.start) * data.next_value[piece.stop - 1]
        returns += sum(gamma**k * data.reward[piece.start + k] for k in range(piece.stop - piece.start))
        assert actual.value_target[piece.start] == pytest.approx(returns, rel=1e-9, abs=1e-9)


@quick
@given(data=packs, gamma=fractions, lam=fractions, rho_bar=st.floats(0.5, 3), c_bar=st.floats(0.5, 3))
def test_vtrace_equals_the_papers_series(data: Packed, gamma: float, lam: float, rho_bar: float, c_bar: float) -> None:
    """Targets equal the sum of truncated products; the advantage is r + gamma v_{t+1} - V without rho_pg."""
    actual = vtrace(
        data.reward,
        data.value,
        data.next_value,
        data.ends,
        data.log_ratio,
        gamma=gamma,
        lam=lam,
        rho_bar=rho_bar,
        c_bar=c_bar,
    )
    target = slow_vtrace_target(data, gamma, lam, rho_bar, c_bar)
    np.testing.assert_allclose(actual.value_target, target, rtol=1e-10, atol=1e-11)
    for piece in data.slices:
        following = np.append(target[piece][1:], data.next_value[piece.stop - 1])
        expected = data.reward[piece] + gamma * following - data.value[piece]
        np.testing.assert_allclose(actual.advantage[piece], expected, rtol=1e-10, atol=1e-11)


@quick
@given(data=packs, gamma=fractions)
def test_vtrace_on_fresh_data_is_gae_with_lambda_one(data: Packed, gamma: float) -> None:
    """At pi = mu every truncated ratio is 1, and V-trace is the on-policy return."""
    fresh = vtrace(data.reward, data.value, data.next_value, data.ends, np.zeros_like(data.reward), gamma=gamma)
    returns = gae(data.reward, data.value, data.next_value, data.ends, gamma=gamma, lam=1.0)
    np.testing.assert_allclose(fresh.value_target, returns.value_target, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fresh.advantage, returns.advantage, rtol=1e-10, atol=1e-12)


def test_vtrace_truncates_a_ratio_that_would_overflow() -> None:
    """At l = 1e4 the ratio is infinite and its truncation is 1: the same targets as at l = 0."""
    data = Packed([3, 2], seed=1)
    columns = (data.reward, data.value, data.next_value, data.ends)
    huge = vtrace(*columns, np.full(5, 1e4), gamma=0.9)
    fresh = vtrace(*columns, np.zeros(5), gamma=0.9)
    assert huge.value_target.tolist() == fresh.value_target.tolist()


def test_a_sequence_cut_inside_an_episode_bootstraps_from_its_last_next_value() -> None:
    """If the last packed step is no end, both estimators treat it as a cut: r + gamma V(next) - V, by hand."""
    reward, value, next_value = np.array([1.0]), np.array([0.5]), np.array([2.0])
    open_end = np.array([False])
    # 1 + 0.5 * 2 - 0.5 = 1.5 for both, at pi = mu.
    assert gae(reward, value, next_value, open_end, gamma=0.5, lam=0.9).advantage.tolist() == [1.5]
    assert vtrace(reward, value, next_value, open_end, np.zeros(1), gamma=0.5).advantage.tolist() == [1.5]


@pytest.mark.parametrize("column", ["value", "next_value", "ends", "joint_log_ratio"])
def test_columns_of_another_length_are_refused(column: str) -> None:
    """A column that is a step too long is a ContractError that names it."""
    data = Packed([4], seed=2)
    columns = {
        "reward": data.reward,
        "value": data.value,
        "next_value": data.next_value,
        "ends": data.ends,
        "joint_log_ratio": data.log_ratio,
    }
    columns[column] = np.append(columns[column], columns[column][-1:])
    with pytest.raises(ContractError, match=f"{column} has shape"):
        vtrace(**columns, gamma=0.9)  # type: ignore[arg-type]


logits = st.builds(
    lambda seed, scale: scale * torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed)).double(),
    st.integers(0, 2**31),
    st.floats(0.1, 30),
)


@quick
@given(logits=logits)
def test_token_log_prob_equals_scipys_log_softmax(logits: torch.Tensor) -> None:
    """The log-probability of each chosen bin equals scipy's log_softmax at that bin, looked up one by one."""
    tokens = torch.arange(6).reshape(2, 3) % 5
    actual = token_log_prob(logits, tokens)
    reference = scipy.special.log_softmax(logits.numpy(), axis=-1)
    for b, a in product(range(2), range(3)):
        assert float(actual[b, a]) == pytest.approx(reference[b, a, int(tokens[b, a])], rel=1e-10, abs=1e-12)


@quick
@given(p=logits, q=logits)
def test_kl_and_entropy_equal_scipys(p: torch.Tensor, q: torch.Tensor) -> None:
    """Exact KL(p||q) and entropy equal scipy.stats.entropy on the probabilities, in nats."""
    probabilities_p, probabilities_q = (scipy.special.softmax(x.numpy(), axis=-1) for x in (p, q))
    np.testing.assert_allclose(
        categorical_kl(p, q).numpy(),
        scipy.stats.entropy(probabilities_p, probabilities_q, axis=-1),
        rtol=1e-7,
        atol=1e-9,
    )
    np.testing.assert_allclose(
        categorical_entropy(p).numpy(), scipy.stats.entropy(probabilities_p, axis=-1), rtol=1e-7, atol=1e-9
    )


def test_kl_stays_finite_for_almost_deterministic_policies() -> None:
    """With logits 200 apart in float32 a probability underflows to 0, and KL is still 200 by hand, not NaN."""
    p, q = torch.tensor([[[200.0, 0.0]]]), torch.tensor([[[0.0, 200.0]]])
    # p puts all mass on bin 0, where log p = 0 and log q = -200.
    assert categorical_kl(p, q).item() == pytest.approx(200.0)
    assert categorical_entropy(p).item() == pytest.approx(0.0, abs=1e-6)


@quick
@given(log_ratios=st.lists(st.floats(-8, 8), min_size=1, max_size=30))
def test_off_policyness_equals_plain_loops(log_ratios: list[float]) -> None:
    """Every summary equals its formula written with plain Python sums; the percentile is numpy's."""
    ratios, count = [math.exp(value) for value in log_ratios], len(log_ratios)
    actual = off_policyness(torch.tensor(log_ratios, dtype=torch.float64))
    assert actual.k1 == pytest.approx(-sum(log_ratios) / count, rel=1e-9, abs=1e-12)
    assert actual.k2 == pytest.approx(sum(value**2 for value in log_ratios) / 2 / count, rel=1e-9, abs=1e-12)
    slow_k3 = sum(ratio - 1 - value for ratio, value in zip(ratios, log_ratios, strict=True)) / count
    assert actual.k3 == pytest.approx(slow_k3, rel=1e-9, abs=1e-12)
    assert actual.chi2 == pytest.approx(sum(ratio**2 for ratio in ratios) / count - 1, rel=1e-9, abs=1e-9)
    slow_ess = sum(ratios) ** 2 / count / sum(ratio**2 for ratio in ratios)
    assert actual.ess == pytest.approx(slow_ess, rel=1e-9)
    percentile = float(np.quantile(np.abs(log_ratios), 0.95))
    assert actual.abs_log_ratio_p95 == pytest.approx(percentile, rel=1e-9, abs=1e-12)


def test_kl_estimators_are_unbiased_under_the_behaviour_policy() -> None:
    """Summing k1 and k3 over all actions with mu's probabilities gives the exact KL(mu||pi); k2 only nearly."""
    mu, pi = torch.tensor([[0.5, 0.25, 0.25], [0.4, 0.4, 0.2]], dtype=torch.float64)
    # Four actions stand for mu's probabilities exactly.
    log_ratio = (pi / mu).log()[torch.tensor([0, 0, 1, 2])]
    exact = float(categorical_kl(mu.log().reshape(1, 1, 3), pi.log().reshape(1, 1, 3)))
    summary = off_policyness(log_ratio)
    assert summary.k1 == pytest.approx(exact, rel=1e-12)
    assert summary.k3 == pytest.approx(exact, rel=1e-12)
    assert summary.k2 == pytest.approx(exact, rel=0.1)


def test_effective_sample_size_survives_ratios_that_overflow() -> None:
    """One item at l = 1000 among four leaves an effective share of 1/4; equal items leave all, by hand."""
    assert off_policyness(torch.tensor([1000.0, 0.0, 0.0, 0.0])).ess == pytest.approx(0.25)
    assert off_policyness(torch.full((4,), 1000.0)).ess == pytest.approx(1.0)


def test_off_policyness_does_not_depend_on_the_shape() -> None:
    """A [B, A] matrix gives what its flat list gives."""
    flat = torch.linspace(-1, 1, 12)
    assert off_policyness(flat.reshape(4, 3)) == off_policyness(flat)


def test_shape_letters_are_returned_with_their_sizes() -> None:
    """Agreeing tensors give the size of each letter."""
    assert check_shapes(x=(torch.zeros(2, 3), "BA"), y=(torch.zeros(2), "B")) == {"B": 2, "A": 3}


def test_shapes_that_disagree_are_refused() -> None:
    """A wrong number of axes, or two sizes for one letter, is a ContractError that names the tensor."""
    with pytest.raises(ContractError, match=r"x has shape \(2,\), expected axes BA"):
        check_shapes(x=(torch.zeros(2), "BA"))
    with pytest.raises(ContractError, match="y has B=3"):
        check_shapes(x=(torch.zeros(2), "B"), y=(torch.zeros(3), "B"))


@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 1000])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_quantiles_are_numpys(n: int, share: float) -> None:
    """Linear between order statistics, also of a single value and at both ends."""
    values = np.random.default_rng(n).normal(size=n)
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-12)
