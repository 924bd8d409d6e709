"""Intervals: against scipy.stats, hand computations and slow twins, and their coverage on simulated data."""

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from replaybench.analysis.intervals import (
    Interval,
    bootstrap_t,
    detectable_difference,
    holm,
    interquartile_mean,
    mean_t,
    minimum_detectable_difference,
    p_value_t,
    probability_of_improvement,
    stratified_mean,
    stratified_mean_t,
    wilson,
)
from replaybench.errors import DataError, NumericalError

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
TWO_TASKS = {"drawer": [0.1, 0.4, 0.3, 0.6], "door": [0.5, 0.2, 0.9]}


def test_mean_t_equals_scipy() -> None:
    """The one-stratum interval is Student's; expected values from scipy.stats.t.interval."""
    values = np.array([0.2, 0.5, 0.45, 0.7, 0.35])
    expected = stats.t.interval(0.9, 4, loc=values.mean(), scale=stats.sem(values))
    interval = mean_t(values, level=0.9)
    assert interval == Interval(pytest.approx(0.44), pytest.approx(expected[0]), pytest.approx(expected[1]), 5, "t")


def test_two_strata_equal_half_of_a_welch_interval() -> None:
    """The mean of two strata is half the Welch difference of one and minus the other; from scipy's ttest_ind."""
    welch = stats.ttest_ind(TWO_TASKS["drawer"], -np.array(TWO_TASKS["door"]), equal_var=False)
    expected = welch.confidence_interval(0.95)
    interval = stratified_mean_t(TWO_TASKS)
    assert interval.low == pytest.approx(expected.low / 2)
    assert interval.high == pytest.approx(expected.high / 2)
    assert stratified_mean(TWO_TASKS).degrees_of_freedom == pytest.approx(welch.df)
    assert p_value_t(TWO_TASKS) == pytest.approx(welch.pvalue)


def test_strata_weigh_the_same_whatever_their_size() -> None:
    """By hand: means 0 and 1 of 2 and 4 values average to .5, s^2 = 2 and 4/3, so se^2 = (2/2 + (4/3)/4) / 4."""
    mean = stratified_mean({"a": [-1.0, 1.0], "b": [0.0, 0.0, 2.0, 2.0]})
    assert mean.estimate == 0.5
    assert mean.standard_error == pytest.approx(((1 + 1 / 3) / 4) ** 0.5)
    assert mean.degrees_of_freedom == pytest.approx((4 / 3) ** 2 / (1 / 1 + (1 / 9) / 3))
    assert mean.n == 6


@pytest.mark.parametrize("make", [stratified_mean_t, lambda strata: bootstrap_t(strata, np.random.default_rng(0))])
def test_one_value_in_a_stratum_leaves_the_interval_undefined(make: Callable[..., Interval]) -> None:
    """A stratum of one value has an estimate and no bounds, and an empty one or no stratum no estimate either."""
    single = make({"drawer": [0.1, 0.4, 0.3], "door": [0.5]})
    assert single.estimate == pytest.approx((0.8 / 3 + 0.5) / 2)
    assert np.isnan([single.low, single.high]).all()
    assert (single.n, single.method) == (4, "undefined")
    for strata, n in [({"drawer": [0.1, 0.4], "door": []}, 2), ({}, 0)]:
        empty = make(strata)
        assert np.isnan([empty.estimate, empty.low, empty.high]).all()
        assert (empty.n, empty.method) == (n, "undefined")


@pytest.mark.parametrize("make", [stratified_mean_t, lambda strata: bootstrap_t(strata, np.random.default_rng(0))])
def test_values_without_variance_claim_no_width(make: Callable[..., Interval]) -> None:
    """Six failures in six lineages do not prove that all fail: no interval, rather than one of width 0."""
    # .1+.2 and .3 differ in the last place; that is rounding, not variance.
    for strata in ({"a": [0.0] * 6}, {"a": [0.1 + 0.2, 0.3, 0.3], "b": [0.7] * 3}):
        interval = make(strata)
        assert interval.method == "zero variance"
        assert np.isnan([interval.low, interval.high]).all()
        assert interval.estimate == pytest.approx(np.mean([values[-1] for values in strata.values()]))


def test_a_stratum_without_variance_does_not_hide_the_others() -> None:
    """By hand: one constant stratum of two halves the other's interval and keeps its degrees of freedom."""
    alone = mean_t(TWO_TASKS["drawer"])
    both = stratified_mean_t({"drawer": TWO_TASKS["drawer"], "door": [0.0, 0.0, 0.0]})
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2)


def test_tiny_values_keep_their_interval() -> None:
    """The interval scales with its values, also where their fourth power underflows (1e-100)."""
    interval = stratified_mean_t(TWO_TASKS)
    tiny = stratified_mean_t({name: np.array(values) * 1e-100 for name, values in TWO_TASKS.items()})
    assert (tiny.low * 1e100, tiny.high * 1e100) == pytest.approx((interval.low, interval.high))


def test_values_that_are_not_finite_are_refused() -> None:
    """A NaN is never averaged or dropped; the message names the stratum and the position."""
    with pytest.raises(NumericalError, match="stratum 'door': value 1 is not finite"):
        stratified_mean_t({"drawer": [0.1, 0.2], "door": [0.1, float("nan")]})
    with pytest.raises(DataError, match="one-dimensional"):
        mean_t(np.zeros((2, 2)))


def test_p_value_without_variance_is_the_sign_flip_test() -> None:
    """Slow twin: the share of all 2^n sign patterns whose mean is at least as far from 0 as the one observed."""

    def slow(values: list[float]) -> float:
        observed = abs(sum(values))
        flipped = [abs(np.dot(signs, values)) for signs in product([-1, 1], repeat=len(values))]
        return float(np.mean([total >= observed - 1e-9 for total in flipped]))

    assert p_value_t({"a": [1.0] * 6}) == slow([1.0] * 6) == 2 / 64
    assert p_value_t({"a": [1.0] * 3, "b": [0.5] * 2}) == slow([1.0] * 3 + [0.5] * 2)
    assert p_value_t({"a": [1.0] * 3, "b": [0.0] * 4}) == slow([1.0] * 3 + [0.0] * 4)
    assert p_value_t({"a": [0.0] * 6}) == slow([0.0] * 6) == 1.0
    # Mixed signs are given p = 1, which can only be larger than the exact value.
    assert p_value_t({"a": [1.0] * 3, "b": [-0.5] * 2}) == 1.0 >= slow([1.0] * 3 + [-0.5] * 2)
    assert np.isnan(p_value_t({"a": [0.3]}))


def test_bootstrap_t_equals_a_slow_twin() -> None:
    """The vectorised bootstrap equals a loop over resamples that draws the same indices."""
    strata = {name: np.array(TWO_TASKS[name]) for name in sorted(TWO_TASKS)}
    resamples = 499
    rng = np.random.default_rng(3)
    indices = {name: rng.integers(len(values), size=(resamples, len(values))) for name, values in strata.items()}
    mean = stratified_mean(strata)
    t_stars = []
    for i in range(resamples):
        resample = stratified_mean({name: values[indices[name][i]] for name, values in strata.items()})
        if resample.standard_error > 0:
            t_stars.append((resample.estimate - mean.estimate) / resample.standard_error)
        else:
            t_stars.append(np.inf * np.sign(resample.estimate - mean.estimate))
    ordered = sorted(t_stars)
    # 498 steps between 499 values: the 2.5 % and 97.5 % points are 12.45 and 485.55, rounded outwards.
    low, high = (mean.estimate - ordered[i] * mean.standard_error for i in (486, 12))
    interval = bootstrap_t(TWO_TASKS, np.random.default_rng(3), resamples)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert (interval.n, interval.method) == (7, "bootstrap-t")


def test_bootstrap_t_depends_on_its_generator_alone() -> None:
    """The same generator gives the same interval, whatever the order of the strata; another one differs."""
    turned = dict(reversed(TWO_TASKS.items()))
    interval = bootstrap_t(TWO_TASKS, np.random.default_rng(1))
    assert bootstrap_t(turned, np.random.default_rng(1)) == interval
    assert bootstrap_t(TWO_TASKS, np.random.default_rng(2)) != interval


def test_bootstrap_t_of_three_values_is_undefined() -> None:
    """Of the resamples of 3 values 1/9 have no variance (by hand: 3 of 27), so the 2.5 % quantile is infinite."""
    interval = bootstrap_t({"a": [0.1, 0.5, 0.3]}, np.random.default_rng(0))
    assert interval.method == "undefined"
    assert np.isnan([interval.low, interval.high]).all()


def _coverage(make: Callable[..., Interval], draw: Draw, truth: float, datasets: int) -> tuple[float, float]:
    """Returns the share of intervals that hold the truth and the share that lie below it, for 2 strata of 6 values."""
    rng = np.random.default_rng(20)
    held = below = 0
    for _ in range(datasets):
        interval = make({"a": draw(rng, 6), "b": 2 * draw(rng, 6)}, rng)
        held += interval.low <= truth <= interval.high
        below += interval.high < truth
    return held / datasets, below / datasets


def _t(strata: dict[str, NDArray[np.float64]], rng: np.random.Generator) -> Interval:
    return stratified_mean_t(strata)


def _bootstrap(strata: dict[str, NDArray[np.float64]], rng: np.random.Generator) -> Interval:
    return bootstrap_t(strata, rng, resamples=999)


@pytest.mark.parametrize(("make", "datasets"), [(_t, 6000), (_bootstrap, 1500)])
def test_intervals_of_normal_data_cover_95_percent(make: Callable[..., Interval], datasets: int) -> None:
    """Between 93 and 97 % of the 95 % intervals hold the truth, for 2 tasks x 6 lineages of unequal variance."""
    coverage, below = _coverage(make, lambda rng, n: rng.normal(size=n), 0.0, datasets)
    assert 0.93 <= coverage <= 0.97
    assert below == pytest.approx((1 - coverage) / 2, abs=0.01)


def test_bootstrap_t_covers_skewed_data_better_than_t() -> None:
    """For exponential values t covers about 91 % (it misses on one side), bootstrap-t about 94 %."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.exponential(size=n) - 1

    t_coverage, t_below = _coverage(_t, draw, 0.0, 6000)
    bootstrap_coverage, _ = _coverage(_bootstrap, draw, 0.0, 1500)
    assert 0.89 <= t_coverage <= 0.925
    assert t_below > 0.9 * (1 - t_coverage)
    assert 0.93 <= bootstrap_coverage <= 0.96


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (7, 20), (10, 10), (150, 300)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_equals_scipy(successes: int, trials: int, level: float) -> None:
    """Expected values from scipy.stats.binomtest's proportion_ci with method wilson."""
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    interval = wilson(successes, trials, level)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (interval.estimate, interval.n, interval.method) == (successes / trials, trials, "wilson")


def test_wilson_ends_at_the_ends() -> None:
    """No success bounds the rate at exactly 0 from below, no failure at exactly 1 from above."""
    assert all(wilson(0, trials).low == 0.0 and wilson(trials, trials).high == 1.0 for trials in range(1, 200))
    assert wilson(0, 0).method == "undefined"
    for successes, trials in [(-1, 3), (4, 3)]:
        with pytest.raises(DataError, match="expected 0 <= successes <= trials"):
            wilson(successes, trials)


def test_holm_by_hand() -> None:
    """By hand: .01*4, .03*3, max(.09, .04*2), max(.09, .06*1), in the order given."""
    assert holm([0.04, 0.01, 0.06, 0.03]) == pytest.approx([0.09, 0.04, 0.09, 0.09])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """Slow twin: the largest Bonferroni p value of any family of hypotheses that contains the one tested."""
    indices = range(len(p_values))
    families = [family for size in range(1, len(p_values) + 1) for family in combinations(indices, size)]
    bonferroni = {family: min(1.0, len(family) * min(p_values[i] for i in family)) for family in families}
    expected = [max(bonferroni[family] for family in families if i in family) for i in indices]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_counts_tests_that_could_not_be_made() -> None:
    """A NaN stays NaN and costs the others what a p value of 1 would; by hand .02*3 and .04*2."""
    assert holm([0.02, float("nan"), 0.04]) == pytest.approx([0.06, float("nan"), 0.08], nan_ok=True)
    assert len(holm([])) == 0
    with pytest.raises(DataError, match=r"p values in \[0, 1\]"):
        holm([0.2, 1.2])


def test_minimum_detectable_difference_has_its_power() -> None:
    """A true difference of that size is found in 80 % of simulated paired t tests (scipy's ttest_1samp)."""
    rng = np.random.default_rng(5)
    for sd, n in [(0.08, 6), (0.3, 3)]:
        difference = minimum_detectable_difference(sd, n)
        p_values = stats.ttest_1samp(rng.normal(difference, sd, size=(40_000, n)), 0.0, axis=1).pvalue
        assert (p_values < 0.05).mean() == pytest.approx(0.8, abs=0.008)


def test_minimum_detectable_difference_solves_the_noncentral_t() -> None:
    """scipy.stats.nct gives the asked power, and many pairs need the normal quantiles' sum 1.95996 + .84162."""
    for n, alpha, power in [(4, 0.05, 0.8), (6, 0.01, 0.9), (12, 0.05 / 7, 0.8)]:
        noncentrality = minimum_detectable_difference(1.0, n, alpha, power) * n**0.5
        critical = stats.t.ppf(1 - alpha / 2, n - 1)
        assert stats.nct.sf(critical, n - 1, noncentrality) == pytest.approx(power, abs=1e-4)
    assert minimum_detectable_difference(1.0, 1_000_000) == pytest.approx(2.80158e-3, rel=1e-4)


def test_detectable_difference_equals_r() -> None:
    """R's power.t.test(n = 20, delta = 1, sd = 1) prints power 0.8689528; solved here for the difference."""
    assert detectable_difference((2 / 20) ** 0.5, 38, 0.05, 0.8689528) == pytest.approx(1.0, abs=1e-5)


def test_a_low_power_counts_both_tails() -> None:
    """At a power just above alpha both tails reject; power from 400 000 draws of scipy's noncentral t."""
    noncentrality = detectable_difference(1.0, 5, 0.05, 0.06)
    draws = stats.nct.rvs(5, noncentrality, size=400_000, random_state=np.random.default_rng(0))
    assert (np.abs(draws) > stats.t.ppf(0.975, 5)).mean() == pytest.approx(0.06, abs=0.0015)


@pytest.mark.parametrize("degrees_of_freedom", [1.0, 1.3, 2.0, 7.7])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 7, 0.05 / 20])
def test_few_degrees_of_freedom_have_a_detectable_difference(degrees_of_freedom: float, alpha: float) -> None:
    """Where scipy's series for the lower tail fails the upper one still has the asked power (scipy.stats.nct)."""
    noncentrality = detectable_difference(1.0, degrees_of_freedom, alpha)
    critical = stats.t.ppf(1 - alpha / 2, degrees_of_freedom)
    assert stats.nct.sf(critical, degrees_of_freedom, noncentrality) == pytest.approx(0.8, abs=1e-4)


def test_detectable_difference_is_undefined_without_variance() -> None:
    """One pair, or no standard error, detects nothing; a power below alpha is refused."""
    assert np.isnan(minimum_detectable_difference(0.1, 1))
    assert np.isnan(detectable_difference(float("nan"), 3))
    assert np.isnan(detectable_difference(0.0, float("nan")))
    with pytest.raises(DataError, match="alpha < power"):
        detectable_difference(1.0, 3, alpha=0.05, power=0.04)


@pytest.mark.parametrize("n", range(1, 14))
def test_interquartile_mean_equals_scipy(n: int) -> None:
    """Expected value from scipy.stats.trim_mean at 25 %."""
    values = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_interquartile_mean_pools_all_entries() -> None:
    """By hand: of 0, 1, 2, 10 in a 2 x 2 array 1 and 2 stay; without entries it is NaN."""
    assert interquartile_mean([[10.0, 1.0], [0.0, 2.0]]) == 1.5
    assert np.isnan(interquartile_mean([]))


def test_probability_of_improvement_equals_mann_whitney() -> None:
    """The Mann-Whitney U statistic over the number of pairs, ties counted half (scipy.stats.mannwhitneyu)."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, size=9).astype(float), rng.integers(0, 6, size=7).astype(float)
    expected = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert probability_of_improvement(x, y) == pytest.approx(expected)
    assert probability_of_improvement([1.0, 2.0], [2.0]) == 0.25
    assert np.isnan(probability_of_improvement([], [1.0]))
