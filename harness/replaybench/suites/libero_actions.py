"""What the seven action tokens of a step mean on LIBERO."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from replaybench.errors import ConfigError
from replaybench.suites.binning import bin_centres, gaussian_over_bins

Floats = NDArray[np.float64]


class Actions(Protocol):
    """Maps tokens to the controller's action in [-1, 1]: motion, rotation, and the gripper, which +1 closes."""

    def decode(self, tokens: NDArray[np.int16]) -> Floats: ...

    def around(self, action: Floats, width: float) -> Floats:
        """Returns a discretised Gaussian over the bins of each dimension, [7, K], whose deviation is `width`."""
        ...


class UniformActions:
    """K equal bins on [-1, 1] of each dimension; a token acts with its bin's centre."""

    def __init__(self, num_bins: int) -> None:
        self._centres = bin_centres(num_bins)

    def decode(self, tokens: NDArray[np.int16]) -> Floats:
        action = self._centres[tokens]
        action[-1] = 1.0 if action[-1] > 0 else -1.0
        return action

    def around(self, action: Floats, width: float) -> Floats:
        return gaussian_over_bins(action, self._centres, width)


class CheckpointActions:
    """The bins of an OpenVLA checkpoint, un-normalised by the statistics of the data that it was trained on.

    There the gripper's number is 1 to open and 0 to close.

    Raises:
        ConfigError: The checkpoint has no such statistics, or the suite other bins.
    """

    def __init__(self, folder: str, key: str | None, num_bins: int) -> None:
        from replaybench.policy.openvla_oft.actions import decode_bins, read_bounds
        from replaybench.policy.openvla_oft.checkpoint import load_config
        from replaybench.policy.openvla_oft.config import NUM_BINS

        if num_bins != NUM_BINS:
            raise ConfigError(f"num_bins is {num_bins}; tokens of a checkpoint have {NUM_BINS} bins.")
        self._bounds = read_bounds(load_config(Path(folder), {}).norm_stats, key)
        self._centres = decode_bins(np.arange(NUM_BINS))

    def decode(self, tokens: NDArray[np.int16]) -> Floats:
        action = self._bounds.unnormalise(self._centres[tokens])
        action[-1] = -1.0 if action[-1] > 0.5 else 1.0
        return np.clip(action, -1.0, 1.0)

    def around(self, action: Floats, width: float) -> Floats:
        recorded = np.append(action[:-1], 1.0 if action[-1] < 0 else 0.0)
        return gaussian_over_bins(self._bounds.normalise(self._bounds.clip(recorded)), self._centres, width)
