"""Action bins: K equal bins on [-1, 1] of each action dimension; a token acts with its bin's centre."""

import numpy as np
from numpy.typing import NDArray


def bin_centres(num_bins: int) -> NDArray[np.float64]:
    """Returns the centres of K equal bins on [-1, 1]."""
    return np.asarray(-1.0 + (2.0 * np.arange(num_bins) + 1.0) / num_bins)


def gaussian_over_bins(action: NDArray[np.float64], centres: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Returns a discretised Gaussian around each action dimension, [D, K]; `width` is its standard deviation."""
    distance = (centres[None, :] - action[:, None]) / width
    density = np.exp(-0.5 * distance**2)
    return np.asarray(density / density.sum(1, keepdims=True))
