"""Bias and variance of a gradient estimator from inner products of gradients summed over groups of episodes.

The estimand is b = E[G]/E[T]: G the gradient of a unit (an episode, or a batch of them), T its number of steps.
Every function takes leading axes, so that thousands of repetitions are one call.
Shape letters: K groups of logged units, F groups of fresh (on-policy) episodes, M = K + F, R = M deletions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from replaybench.errors import ContractError

Floats = NDArray[np.float64]

BISECTIONS = 60
# Corrections that coincide on a log differ by the rounding of float32 gradients: by less than this share.
RELATIVE_TOLERANCE = 1e-5


class Estimates(NamedTuple):
    """An estimate and its interval, each with the leading axes of the data; NaN where it is not defined."""

    estimate: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Independent units in groups: how many units a group holds, and how many steps they have.

    Args:
        units: [K] number of units of each group.
        steps: [K] number of their steps.
    """

    units: Floats
    steps: Floats

    @property
    def num_groups(self) -> int:
        return len(self.units)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The vector b = E[Y]/E[T_log] + E[Z]/E[T_fresh] by the inner products of its group sums.

    Args:
        gram: [..., M, M] inner products of the group sums Y_1..Y_K, Z_1..Z_F.
        log: The groups behind Y.
        fresh: The groups behind Z, independent of the log's; None where b has no such part.
    """

    gram: Floats
    log: Sample
    fresh: Sample | None = None

    def __post_init__(self) -> None:
        """Refuses samples too small for an interval, and a Gram matrix of another size."""
        samples = self.samples
        size = sum(sample.num_groups for sample in samples)
        if self.gram.shape[-2:] != (size, size):
            raise ContractError(f"gram has shape {self.gram.shape}, expected [..., {size}, {size}] for these groups.")
        if min(sample.num_groups for sample in samples) < 4:
            raise ContractError("A jackknife over fewer than 4 groups has no interval; give more groups of episodes.")

    @property
    def samples(self) -> list[Sample]:
        return [self.log] if self.fresh is None else [self.log, self.fresh]


@dataclass(frozen=True, kw_only=True)
class GroupGradients:
    """What a probe measures of one method, as inner products of gradients summed over each group.

    Args:
        gram: [..., 2K+F, 2K+F] inner products of [method's K group sums, reference's K, fresh's F].
        squared_norm: [..., K] sum of the squared norms of the method's unit gradients over each group.
        log: The K groups of logged units, the same for method and reference.
        fresh: The F groups of on-policy episodes, or None (F = 0) where there are none.
        episodes_per_unit: Episodes of a unit: 1, or the size of the batches that the method looks at as a whole.
    """

    gram: Floats
    squared_norm: Floats
    log: Sample
    fresh: Sample | None = None
    episodes_per_unit: int = 1

    def contrast(self, method: float, reference: float, fresh: float) -> Contrast:
        """Returns the contrast method * S + reference * R + fresh * F; without its fresh part where that is 0."""
        k = self.log.num_groups
        num_fresh = 0 if self.fresh is None or fresh == 0 else self.fresh.num_groups
        rows = np.zeros((k + num_fresh, self.gram.shape[-1]))
        rows[:k, :k] = method * np.eye(k)
        rows[:k, k : 2 * k] = reference * np.eye(k)
        rows[k:, 2 * k : 2 * k + num_fresh] = fresh * np.eye(num_fresh)
        return Contrast(gram=rows @ self.gram @ rows.T, log=self.log, fresh=self.fresh if num_fresh else None)


def squared_length(contrast: Contrast) -> Estimates:
    """Estimates |b|^2 without the noise's share, with a 95 % interval.

    The estimate is the mean of <b_1, b_2> over all ways to split the groups into two disjoint halves, which is the
    mean over pairs of different groups. It may be negative.

    The interval holds every theta that |estimate - theta| <= t sqrt(V(theta)) does not reject, with
        V(theta) = theta A + 2 tr(Sigma^2),
    A = 4 b'Sigma b / |b|^2 and Sigma the covariance of the plug-in b, both from deleting one group at a time. A plain
    jackknife interval takes V at the estimate, and covers too often or too rarely where b is near 0.
    """
    zero = np.zeros(contrast.gram.shape[:-2])
    return _invert(_pair_mean(contrast)[..., 0], zero, contrast, np.zeros_like(_along(contrast)), 1.0)


def unit_variance(gradients: GroupGradients) -> Estimates:
    """Estimates tr Cov(G)/E[T]^2 of one unit, with a 95 % jackknife t interval."""
    # The squared mean is taken off, so its second order is an error of the variance too.
    return _jackknife_t(
        _variance_replicates(gradients), [gradients.log], _second_order(gradients.contrast(1.0, 0.0, 0.0), 1.0)
    )


def mean_squared_error(gradients: GroupGradients, num_episodes: int) -> Estimates:
    """Estimates the mean squared distance of an average over `num_episodes` episodes to the on-policy gradient.

    |b|^2 + variance/n, the interval as that of `squared_length`, with the variance's own error in V.

    Raises:
        ContractError: There is no on-policy sample.
    """
    if gradients.fresh is None:
        raise ContractError("The error is measured against fresh episodes; there are none.")
    contrast = gradients.contrast(1.0, 0.0, -1.0)
    share = gradients.episodes_per_unit / num_episodes
    variance = _variance_replicates(gradients) * share
    deviations = np.zeros(_along(contrast).shape)
    deviations[..., : gradients.log.num_groups] = variance[..., 1:] - variance[..., :1]
    estimate = _pair_mean(contrast)[..., 0] + variance[..., 0]
    return _invert(estimate, variance[..., 0], contrast, deviations * _scale(contrast.samples), 1.0 - share)


def cosine(gradients: GroupGradients) -> Estimates:
    """Estimates the cosine between the method's mean gradient and the on-policy one; consistent, not unbiased.

    Numerator and lengths are pair means, so noise does not shrink it, and it may exceed 1; NaN where a squared length
    is not positive.
    """
    if gradients.fresh is None:
        raise ContractError("The cosine is that with the gradient on fresh episodes; there are none.")
    both = gradients.contrast(1.0, 0.0, 1.0)
    parts = _pair_parts(both)
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = (parts.log > 0) & (parts.fresh > 0)
        replicates = np.where(positive, parts.cross / np.sqrt(parts.log * parts.fresh), np.nan)
    return _jackknife_t(replicates, both.samples)


def reference_noise(gradients: GroupGradients) -> Floats:
    """Returns the mean squared error of the on-policy gradient itself, tr Cov of its estimate."""
    contrast = gradients.contrast(1.0, 0.0, 1.0)
    inner = _deviation_products(contrast)
    k = gradients.log.num_groups
    return np.asarray(np.trace(inner[..., k:, k:], axis1=-2, axis2=-1))


class _PairParts(NamedTuple):
    """Pair means of |y|^2, <y, z> and |z|^2 for b = y + z; each [..., 1 + R], the first without deletion."""

    log: Floats
    cross: Floats
    fresh: Floats


def _deletions(contrast: Contrast) -> Floats:
    """Returns [1 + R, M]: all ones, then each group left out once."""
    size = contrast.gram.shape[-1]
    return np.vstack([np.ones(size), 1.0 - np.eye(size)])


def _pair_parts(contrast: Contrast) -> _PairParts:
    keep, k = _deletions(contrast), contrast.log.num_groups
    log = _pairs(contrast.gram[..., :k, :k], keep[:, :k], contrast.log)
    if contrast.fresh is None:
        return _PairParts(log, np.zeros_like(log), np.zeros_like(log))
    between = _quadratic(keep[:, :k], contrast.gram[..., :k, k:], keep[:, k:])
    cross = between / ((keep[:, :k] @ contrast.log.steps) * (keep[:, k:] @ contrast.fresh.steps))
    return _PairParts(log, cross, _pairs(contrast.gram[..., k:, k:], keep[:, k:], contrast.fresh))


def _pairs(gram: Floats, keep: Floats, sample: Sample) -> Floats:
    """Returns the mean of <G, G'> over units of different groups, in units of steps, for each row of `keep`."""
    apart = gram * (1.0 - np.eye(gram.shape[-1]))
    units = keep @ sample.units
    num_pairs = units**2 - keep @ sample.units**2
    steps_per_unit = (keep @ sample.steps) / units
    return np.asarray(_quadratic(keep, apart, keep) / num_pairs / steps_per_unit**2)


def _quadratic(left: Floats, gram: Floats, right: Floats) -> Floats:
    """Returns left_r' gram right_r for each row r, [..., rows]."""
    return np.asarray(((left @ gram) * right).sum(-1))


def _pair_mean(contrast: Contrast) -> Floats:
    parts = _pair_parts(contrast)
    return parts.log + 2 * parts.cross + parts.fresh


def _variance_replicates(gradients: GroupGradients) -> Floats:
    """Returns the variance of one unit, [..., 1 + K]: all groups, then each left out once."""
    contrast = gradients.contrast(1.0, 0.0, 0.0)
    keep, sample = _deletions(contrast), gradients.log
    units, steps = keep @ sample.units, keep @ sample.steps
    mean_square = (gradients.squared_norm @ keep.T) / units / (steps / units) ** 2
    return np.asarray(mean_square - _pair_parts(contrast).log)


def _coefficients(contrast: Contrast) -> Floats:
    """Returns [1 + R, M], the plug-in b = sum Y / sum T + sum Z / sum T in terms of group sums, for each deletion."""
    keep = _deletions(contrast)
    kept = [(keep[:, part], sample.steps) for part, sample in _parts(contrast.samples)]
    return np.hstack([mine / (mine @ steps)[:, None] for mine, steps in kept])


def _scale(samples: Sequence[Sample]) -> Floats:
    """Returns [R] factors that make the sum of squared deviations the jackknife's variance."""
    sizes = [sample.num_groups for sample in samples]
    return np.concatenate([np.full(size, np.sqrt((size - 1) / size)) for size in sizes])


def _parts(samples: Sequence[Sample]) -> list[tuple[slice, Sample]]:
    """Returns where each sample's groups lie among all R deletions."""
    ends = np.cumsum([sample.num_groups for sample in samples]).tolist()
    return [(slice(end - sample.num_groups, end), sample) for end, sample in zip(ends, samples, strict=True)]


def _deviation_products(contrast: Contrast) -> Floats:
    """Returns [..., R, R] inner products of the scaled deviations of b; their outer products sum to Sigma."""
    coefficients = _coefficients(contrast)
    deviations = (coefficients[1:] - coefficients[0]) * _scale(contrast.samples)[:, None]
    return np.asarray(deviations @ contrast.gram @ deviations.T)


def _along(contrast: Contrast) -> Floats:
    """Returns [..., R] scaled deviations of the pair mean over the plug-in's length: those for a b of length 1.

    Of the pair mean, because the plug-in's |b|^2 also holds every group's own norm, whose scatter is no error of b.
    """
    coefficients = _coefficients(contrast)[0]
    length = np.sqrt(np.maximum(contrast.gram @ coefficients @ coefficients, 0.0))[..., None]
    deviations = _scaled_deviations(_pair_mean(contrast), contrast.samples)
    return np.asarray(np.divide(deviations, length, out=np.zeros_like(deviations), where=length > 0))


def _scaled_deviations(replicates: Floats, samples: Sequence[Sample]) -> Floats:
    """Returns [..., R] deviations whose squares sum to the jackknife's variance, from [..., 1 + R] values."""
    left_out = replicates[..., 1:]
    centred = [left_out[..., part] - left_out[..., part].mean(-1, keepdims=True) for part, _ in _parts(samples)]
    return np.asarray(np.concatenate(centred, -1) * _scale(samples))


def _second_order(contrast: Contrast, log_share: float) -> Floats:
    """Returns the variance of the pair mean where b = 0: 2 tr(Sigma^2), `log_share` times the log's own pairs."""
    inner, total = _deviation_products(contrast), np.zeros(contrast.gram.shape[:-2])
    for (mine, sample), share in zip(_parts(contrast.samples), (log_share, 1.0), strict=False):
        k = sample.num_groups
        # The scaled deviations are those of the groups from their mean, over the root of k (k - 1).
        squared_trace = (k - 1) ** 2 * np.maximum(_squared_covariance(inner[..., mine, mine]), 0.0)
        total = total + 2 * share**2 * squared_trace * k / (k - 1)
    k = contrast.log.num_groups
    return np.asarray(total + 4 * (inner[..., :k, k:] ** 2).sum((-2, -1)))


def _squared_covariance(gram: Floats) -> Floats:
    """Estimates tr(Cov^2) of K independent vectors from their inner products, without any vector's own norm.

    The mean of <x_i - x_j, x_k - x_l>^2 / 4 over different i, j, k, l, in sums over pairs. Norms would let vectors of
    unequal length, such as long and short episodes, pass for a covariance of low rank.

    Source: Li and Chen 2012, Annals of Statistics 40(2), section 2.
    """
    k = gram.shape[-1]
    apart = gram * (1.0 - np.eye(k))
    rows = apart.sum(-1)
    squares, row_squares, total = (apart**2).sum((-2, -1)), (rows**2).sum(-1), rows.sum(-1)
    pairs = k * (k - 1)
    triples, quadruples = pairs * (k - 2), pairs * (k - 2) * (k - 3)
    two = squares / pairs
    three = (row_squares - squares) / triples
    four = (total**2 - 4 * row_squares + 2 * squares) / quadruples
    return np.asarray(two - 2 * three + four)


def _invert(estimate: Floats, offset: Floats, contrast: Contrast, extra: Floats, log_share: float) -> Estimates:
    """Returns the interval of theta = |b|^2 + offset: all theta with (estimate - theta)^2 <= t^2 V(theta).

    V(theta) = sum_r (s along_r + extra_r)^2 + second order, s = |b| = sqrt(max(0, theta - offset)).
    """
    along = _along(contrast)
    second = _second_order(contrast, log_share)
    quadratic, mixed = (along**2).sum(-1), (along * extra).sum(-1)
    constant = (extra**2).sum(-1) + second
    length = np.sqrt(np.maximum(estimate - offset, 0.0))
    t = special.stdtrit(_degrees_of_freedom(length[..., None] * along + extra, contrast.samples), 0.975)

    def is_inside(theta: Floats) -> NDArray[np.bool_]:
        s = np.sqrt(np.maximum(theta - offset, 0.0))
        spread = np.maximum(quadratic * s**2 + 2 * mixed * s + constant, 0.0)
        return np.asarray((estimate - theta) ** 2 <= t**2 * spread)

    reach = t * (length * np.sqrt(quadratic) + np.sqrt(constant))
    slope = t * np.sqrt(quadratic)
    above = np.maximum(estimate - offset, 0.0) + t * np.sqrt(constant)
    farthest = offset + ((slope + np.sqrt(slope**2 + 4 * above)) / 2) ** 2
    return Estimates(estimate, _edge(is_inside, estimate, estimate - reach), _edge(is_inside, estimate, farthest))


def _edge(is_inside: Callable[[Floats], NDArray[np.bool_]], inner: Floats, outer: Floats) -> Floats:
    """Returns where a set that holds `inner` and not `outer` ends, by bisection."""
    for _ in range(BISECTIONS):
        middle = (inner + outer) / 2
        inside = is_inside(middle)
        inner, outer = np.where(inside, middle, inner), np.where(inside, outer, middle)
    return np.asarray((inner + outer) / 2)


def _jackknife_t(replicates: Floats, samples: Sequence[Sample], second_order: Floats | float = 0.0) -> Estimates:
    """Returns the delete-a-group jackknife t interval of a statistic, from [..., 1 + R] values.

    `second_order` is added to its variance: what remains where the statistic does not react to single groups.
    """
    deviations = _scaled_deviations(replicates, samples)
    error = np.sqrt((deviations**2).sum(-1) + second_order)
    half_width = special.stdtrit(_degrees_of_freedom(deviations, samples), 0.975) * error
    return Estimates(replicates[..., 0], replicates[..., 0] - half_width, replicates[..., 0] + half_width)


def _degrees_of_freedom(deviations: Floats, samples: Sequence[Sample]) -> Floats:
    """Returns the Welch-Satterthwaite degrees of freedom of a sum of squared deviations over one or two samples."""
    parts = [(deviations[..., part] ** 2).sum(-1) for part, _ in _parts(samples)]
    degrees = [sample.num_groups - 1 for sample in samples]
    below = sum(part**2 / degree for part, degree in zip(parts, degrees, strict=True))
    total = np.asarray(sum(parts)) ** 2
    fallback = np.full(np.shape(total), float(sum(degrees)))
    return np.asarray(np.divide(total, below, out=fallback, where=below > 0))


def bias_columns(gradients: GroupGradients) -> dict[str, float | None]:
    """Returns the columns of a table's row that do not depend on the number of episodes averaged."""
    columns = _columns("bias2_weight", squared_length(gradients.contrast(1.0, -1.0, 0.0)))
    if gradients.fresh is None:
        return columns | _columns("bias2_data", None) | _columns("bias2", None) | _columns("cosine", None)
    columns |= _columns("bias2_data", squared_length(gradients.contrast(0.0, 1.0, -1.0)))
    columns |= _columns("bias2", squared_length(gradients.contrast(1.0, 0.0, -1.0)))
    return columns | _columns("cosine", cosine(gradients))


def error_columns(gradients: GroupGradients, num_episodes: int) -> dict[str, float | None]:
    """Returns the columns of a table's row for averages over `num_episodes` episodes.

    reference_noise_share: of the distance that a comparison with the measured on-policy gradient would show,
    mse + noise, the share that is that gradient's own noise. It is taken off in bias2 and mse, not in their intervals.
    """
    share = gradients.episodes_per_unit / num_episodes
    variance = unit_variance(gradients)
    columns = _columns("variance", Estimates(*(value * share for value in variance)))
    if gradients.fresh is None:
        return columns | _columns("mse", None) | {"reference_noise_share": None}
    error, noise = mean_squared_error(gradients, num_episodes), float(reference_noise(gradients))
    shown = float(error.estimate) + noise
    return columns | _columns("mse", error) | {"reference_noise_share": noise / shown if shown > 0 else None}


def ranks(errors: Sequence[float | None]) -> list[int | None]:
    """Returns the rank of each error, 1 the smallest; errors that differ by rounding only share the better rank."""
    known = [error for error in errors if error is not None]
    margin = RELATIVE_TOLERANCE * max(map(abs, known), default=0.0)
    return [None if error is None else 1 + sum(rival < error - margin for rival in known) for error in errors]


def _columns(name: str, found: Estimates | None) -> dict[str, float | None]:
    values = (None, None, None) if found is None else tuple(map(_number, found))
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _number(value: Floats) -> float | None:
    return float(value) if np.isfinite(value) else None
