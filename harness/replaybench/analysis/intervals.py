"""Intervals and tests over few lineages, stratified by task.

A stratum is a task and its values are one number a lineage. Strata weigh the same, however many lineages they hold.
An interval that the data cannot support is NaN and its method says why; it is never narrow by accident.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from replaybench.errors import DataError, NumericalError

UNDEFINED = "undefined"
ZERO_VARIANCE = "zero variance"

# Equal values that were averaged in different orders differ by a few units in the last place.
_RELATIVE_ROUNDING = 1e-12

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate from n values with its confidence interval.

    low and high are NaN where `method` is "undefined" (a stratum has fewer than two values, or the bootstrap has no
    finite quantile) or "zero variance" (all values of each stratum agree: a width of 0 would claim a certainty that a
    few equal values, such as a success of 0 everywhere, do not give).
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str


class StratifiedMean(NamedTuple):
    """The mean of the strata's means; standard_error and degrees_of_freedom are NaN if a stratum has under two values.

    Without any variance standard_error is 0 and degrees_of_freedom NaN.
    """

    estimate: float
    standard_error: float
    degrees_of_freedom: float
    n: int


def stratified_mean(values_by_stratum: Mapping[str, ArrayLike]) -> StratifiedMean:
    """Estimates the equally weighted mean of K strata.

    standard_error^2 = sum_k v_k / K^2, v_k = s_k^2 / n_k;
    degrees_of_freedom = (sum_k v_k)^2 / sum_k (v_k^2 / (n_k - 1)).

    Returns:
        estimate NaN if there is no stratum or an empty one: leaving it out would change what is estimated.

    Raises:
        NumericalError: A value is not finite.
        DataError: A stratum is not a one-dimensional array.

    Source: Welch 1947; Satterthwaite 1946.
    """
    strata = _finite_strata(values_by_stratum)
    n = sum(len(values) for values in strata)
    sizes = np.array([len(values) for values in strata])
    if not strata or sizes.min() == 0:
        return StratifiedMean(np.nan, np.nan, np.nan, n)
    estimate = float(np.mean([values.mean() for values in strata]))
    if sizes.min() < 2:
        return StratifiedMean(estimate, np.nan, np.nan, n)
    parts = np.array([_variance(values) for values in strata]) / sizes
    if not parts.any():
        return StratifiedMean(estimate, 0.0, np.nan, n)
    # Only the parts' relative sizes enter the degrees of freedom; scaling keeps the squares of tiny ones above 0.
    shares = parts / parts.max()
    degrees_of_freedom = float(shares.sum() ** 2 / (shares**2 / (sizes - 1)).sum())
    return StratifiedMean(estimate, float(np.sqrt(parts.sum()) / len(strata)), degrees_of_freedom, n)


def mean_t(values: ArrayLike, level: float = 0.95) -> Interval:
    """Returns Student's t interval of the mean of one stratum."""
    return stratified_mean_t({"": values}, level)


def stratified_mean_t(values_by_stratum: Mapping[str, ArrayLike], level: float = 0.95) -> Interval:
    """Returns the t interval of the equally weighted mean of the strata, at Welch-Satterthwaite degrees of freedom."""
    mean = stratified_mean(values_by_stratum)
    if not mean.standard_error > 0:
        return _without_bounds(mean)
    half_width = float(special.stdtrit(mean.degrees_of_freedom, (1 + level) / 2)) * mean.standard_error
    return Interval(mean.estimate, mean.estimate - half_width, mean.estimate + half_width, mean.n, "t")


def bootstrap_t(
    values_by_stratum: Mapping[str, ArrayLike], rng: np.random.Generator, resamples: int = 4999, level: float = 0.95
) -> Interval:
    """Returns the studentised bootstrap interval of the equally weighted mean of the strata.

    [m - q_high se, m - q_low se] with the quantiles of t* = (m* - m) / se*, values redrawn within each stratum.
    A resample without variance counts as t* = +-inf; where so many of them occur that a quantile is infinite (one
    stratum of three values, say) the interval is "undefined".

    Source: Efron and Tibshirani 1993, section 12.5.
    """
    mean = stratified_mean(values_by_stratum)
    if not mean.standard_error > 0:
        return _without_bounds(mean)
    t_stars = _studentised_resamples(_finite_strata(values_by_stratum), mean.estimate, rng, resamples)
    # Order statistics, rounded outwards: interpolating next to an infinite value would give NaN.
    t_low = float(np.quantile(t_stars, (1 - level) / 2, method="lower"))
    t_high = float(np.quantile(t_stars, (1 + level) / 2, method="higher"))
    if not np.isfinite([t_low, t_high]).all():
        return Interval(mean.estimate, np.nan, np.nan, mean.n, UNDEFINED)
    low, high = mean.estimate - t_high * mean.standard_error, mean.estimate - t_low * mean.standard_error
    return Interval(mean.estimate, low, high, mean.n, "bootstrap-t")


def p_value_t(values_by_stratum: Mapping[str, ArrayLike]) -> float:
    """Returns the two-sided p value of "the equally weighted mean of the strata is 0", NaN where undefined.

    Student's t as in `stratified_mean_t`. Without variance t is infinite, so the sign-flip test takes over: n non-zero
    values that all have the same sign have p = 2 / 2^n, any others 1.
    """
    mean = stratified_mean(values_by_stratum)
    if mean.standard_error == 0:
        return _sign_flip_p(np.concatenate(_finite_strata(values_by_stratum)))
    return float(2 * special.stdtr(mean.degrees_of_freedom, -abs(mean.estimate / mean.standard_error)))


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Returns Wilson's score interval of one policy's success rate over independent episodes.

    Raises:
        DataError: Not 0 <= successes <= trials.

    Source: Wilson 1927.
    """
    if not 0 <= successes <= trials:
        raise DataError(f"wilson: {successes} successes in {trials} trials; expected 0 <= successes <= trials.")
    if trials == 0:
        return Interval(np.nan, np.nan, np.nan, 0, UNDEFINED)
    z2 = float(special.ndtri((1 + level) / 2)) ** 2
    rate = successes / trials
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half_width = np.sqrt(z2 * (rate * (1 - rate) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    # At the ends the bound is 0 or 1 exactly; subtraction would miss it by a rounding error.
    low = 0.0 if successes == 0 else float(centre - half_width)
    high = 1.0 if successes == trials else float(centre + half_width)
    return Interval(rate, low, high, trials, "wilson")


def holm(p_values: ArrayLike) -> Floats:
    """Returns Holm's adjusted p values, in the order given.

    NaN, a test that could not be made, stays NaN and counts in the family as if it were 1: it must not make the other
    tests easier.

    Raises:
        DataError: A p value lies outside [0, 1].

    Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise DataError(f"holm: expected a list of p values in [0, 1], got {p.tolist()}.")
    counted = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(counted, kind="stable")
    stepped = np.maximum.accumulate(counted[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return np.where(np.isnan(p), np.nan, adjusted)


def minimum_detectable_difference(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns the true mean difference that a two-sided paired t test finds with probability `power`.

    Args:
        sd: Standard deviation of the n paired differences.

    Returns:
        In the unit of sd; NaN for n < 2.
    """
    if n < 2:
        return float("nan")
    return detectable_difference(sd / n**0.5, n - 1, alpha, power)


def detectable_difference(
    standard_error: float, degrees_of_freedom: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Returns the true difference that a two-sided t test finds with probability `power`, NaN where undefined.

    Solves P(|T'| > t_{1-alpha/2}) = power for the noncentrality of the noncentral t variable T'.

    Raises:
        DataError: Not 0 < alpha < power < 1.
    """
    if not 0 < alpha < power < 1:
        raise DataError(f"detectable_difference: expected 0 < alpha < power < 1, got alpha {alpha}, power {power}.")
    if not (np.isfinite(standard_error) and np.isfinite(degrees_of_freedom)):
        return float("nan")
    critical = float(special.stdtrit(degrees_of_freedom, 1 - alpha / 2))

    def shortfall(noncentrality: float) -> float:
        above = 1 - float(special.nctdtr(degrees_of_freedom, noncentrality, critical))
        below = float(special.nctdtr(degrees_of_freedom, noncentrality, -critical))
        # Far out in the lower tail, where less than 1e-13 is left, scipy's series returns NaN.
        return power - above - (0.0 if math.isnan(below) else below)

    upper = critical
    while shortfall(upper) > 0:
        upper *= 2
    return float(optimize.brentq(shortfall, 0.0, upper)) * standard_error


def interquartile_mean(values: ArrayLike) -> float:
    """Returns the mean without the lowest and highest floor(n / 4) values, over all entries; NaN without any.

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    """
    ordered = np.sort(_finite("values", np.ravel(np.asarray(values, dtype=np.float64))))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean()) if len(ordered) else float("nan")


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Returns P(X > Y) + P(X = Y) / 2 over all pairs of a value of x and one of y, unpaired; NaN if either is empty.

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    """
    x_values, y_values = _finite("x", np.asarray(x, dtype=np.float64)), _finite("y", np.asarray(y, dtype=np.float64))
    if not len(x_values) or not len(y_values):
        return float("nan")
    return float((np.sign(x_values[:, None] - y_values[None, :]).mean() + 1) / 2)


def _finite_strata(values_by_stratum: Mapping[str, ArrayLike]) -> list[Floats]:
    """Returns the strata in the order of their names, so that no result depends on the order of a mapping."""
    return [
        _finite(f"stratum '{name}'", np.asarray(values_by_stratum[name], dtype=np.float64))
        for name in sorted(values_by_stratum)
    ]


def _finite(where: str, values: Floats) -> Floats:
    if values.ndim != 1:
        raise DataError(f"{where}: expected a one-dimensional array, got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise NumericalError(
            f"{where}: value {int(np.argmin(np.isfinite(values)))} is not finite. Leave failed runs out."
        )
    return values


def _variance(values: Floats) -> float:
    if np.ptp(values) <= _RELATIVE_ROUNDING * np.abs(values).max():
        return 0.0
    return float(values.var(ddof=1))


def _without_bounds(mean: StratifiedMean) -> Interval:
    method = ZERO_VARIANCE if mean.standard_error == 0 else UNDEFINED
    return Interval(mean.estimate, np.nan, np.nan, mean.n, method)


def _sign_flip_p(values: Floats) -> float:
    nonzero = values[values != 0]
    if len(nonzero) == 0 or np.ptp(np.sign(nonzero)) > 0:
        return 1.0
    return 2.0 ** (1 - len(nonzero))


def _studentised_resamples(
    strata: Sequence[Floats], estimate: float, rng: np.random.Generator, resamples: int
) -> Floats:
    means, variances = np.zeros(resamples), np.zeros(resamples)
    for values in strata:
        draws = values[rng.integers(len(values), size=(resamples, len(values)))]
        means += draws.mean(axis=1) / len(strata)
        variances += draws.var(axis=1, ddof=1) / (len(values) * len(strata) ** 2)
    rounding = _RELATIVE_ROUNDING * max(np.abs(values).max() for values in strata)
    deviations = np.where(np.abs(means - estimate) <= rounding, 0.0, means - estimate)
    errors = np.sqrt(variances)
    t_stars = np.copysign(np.inf, deviations)
    np.divide(deviations, errors, out=t_stars, where=errors > rounding)
    return np.where(deviations == 0, 0.0, t_stars)
