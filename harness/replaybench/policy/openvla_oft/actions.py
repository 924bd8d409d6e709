"""Between action tokens and the numbers that a robot takes: 256 bins of [-1, 1], and a data set's statistics.

Bin k of the policy is token 31744 + k; higher bins are lower actions. Numbers are float64, as in the reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from replaybench.errors import ConfigError, DataError, unknown_name
from replaybench.policy.openvla_oft.config import NUM_BINS

EDGES = np.linspace(-1.0, 1.0, NUM_BINS)
# 256 edges have 255 centres, so the two lowest tokens mean the same action.
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2
# Keeps a constant dimension from dividing by zero; part of the trained convention.
TINY = 1e-8
Floats = NDArray[np.float64]


def decode_bins(bins: ArrayLike) -> Floats:
    """Returns normalised actions in [-1, 1] of bins 0..255, of any shape.

    Raises:
        DataError: A bin is outside 0..255.
    """
    index = np.asarray(bins, dtype=np.int64)
    if index.size and not ((index >= 0) & (index < NUM_BINS)).all():
        raise DataError(f"Action bins span {index.min()}..{index.max()}, expected 0..{NUM_BINS - 1}.")
    return np.asarray(CENTRES[np.clip(NUM_BINS - 1 - index, 0, NUM_BINS - 2)])


def encode_bins(normalised: ArrayLike) -> NDArray[np.int16]:
    """Returns the bins 0..255 of normalised actions.

    Raises:
        DataError: An action is outside [-1, 1].
    """
    values = np.asarray(normalised, dtype=np.float64)
    if values.size and not (np.abs(values) <= 1.0).all():
        raise DataError(f"Normalised actions span {values.min():.4g}..{values.max():.4g}, expected -1..1.")
    return (NUM_BINS - np.digitize(values, EDGES)).astype(np.int16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """The 1 % and 99 % quantiles of a data set's actions (or robot states), which map to -1 and 1.

    Where `mask` is false the number is not scaled, as for the gripper.
    """

    key: str
    low: Floats
    high: Floats
    mask: NDArray[np.bool_]

    def unnormalise(self, normalised: ArrayLike) -> Floats:
        """Returns numbers in the data set's units, [..., dims], from normalised ones."""
        values = self._checked(normalised)
        return np.asarray(np.where(self.mask, 0.5 * (values + 1) * (self.high - self.low + TINY) + self.low, values))

    def clip(self, values: ArrayLike) -> Floats:
        """Returns the numbers with those outside the bounds moved to the nearest bound, as in training."""
        checked = self._checked(values)
        return np.clip(checked, np.where(self.mask, self.low, -1.0), np.where(self.mask, self.high, 1.0))

    def normalise(self, values: ArrayLike) -> Floats:
        """Returns normalised numbers in [-1, 1].

        Raises:
            DataError: A number is outside the bounds; `clip` first if this is meant.
        """
        checked = self._checked(values)
        outside = checked != self.clip(checked)
        if outside.any():
            where = tuple(np.argwhere(outside)[0])
            dim = int(where[-1])
            low, high = (float(bound[dim]) if self.mask[dim] else edge for bound, edge in self._sides())
            raise DataError(
                f"Statistics '{self.key}': dimension {dim} is {checked[where]:.4g}, outside {low:.4g}..{high:.4g}. "
                "Use the statistics of the data set that the number comes from, or clip it on purpose."
            )
        scaled = 2 * (checked - self.low) / (self.high - self.low + TINY) - 1
        return np.asarray(np.where(self.mask, scaled, checked))

    def _sides(self) -> tuple[tuple[Floats, float], tuple[Floats, float]]:
        return (self.low, -1.0), (self.high, 1.0)

    def _checked(self, values: ArrayLike) -> Floats:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0 or array.shape[-1] != len(self.low):
            raise DataError(
                f"Statistics '{self.key}' have {len(self.low)} dimensions, the numbers have shape {array.shape}."
            )
        if not np.isfinite(array).all():
            raise DataError(f"Statistics '{self.key}': a number is not finite. Repair the data.")
        return array


def read_bounds(norm_stats: Mapping[str, Any], key: str | None = None, what: str = "action") -> Bounds:
    """Returns the bounds of a data set from the statistics of a checkpoint.

    Args:
        norm_stats: By data set, as in dataset_statistics.json.
        key: The data set; may be left out where there is only one.
        what: `action` or `proprio`.

    Raises:
        ConfigError: The data set is not known, or several are and none was named.
        DataError: Its statistics are incomplete.
    """
    if key is None:
        if len(norm_stats) != 1:
            raise ConfigError(
                f"The checkpoint has statistics of {len(norm_stats)} data sets ({', '.join(sorted(norm_stats))}). "
                "Name the one to un-normalise with."
            )
        key = next(iter(norm_stats))
    if key not in norm_stats:
        raise unknown_name("un-normalisation key", key, norm_stats)
    try:
        fields = norm_stats[key][what]
        low, high = (np.asarray(fields[name], dtype=np.float64) for name in ("q01", "q99"))
        mask = np.asarray(fields.get("mask", np.ones_like(low)), dtype=bool)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"Statistics '{key}': {what} lacks q01 or q99 ({error!r}). Take the checkpoint's own."
        ) from error
    if not low.shape == high.shape == mask.shape:
        raise DataError(f"Statistics '{key}': q01, q99 and mask of {what} differ in length.")
    return Bounds(key=key, low=low, high=high, mask=mask)
