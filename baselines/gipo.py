"""GIPO: Gaussian importance-sampling policy optimisation (Lu et al. 2026, arXiv 2603.03955).

J = sg[exp(-(l/sigma)^2 / 2)] rho A, so c = exp(l - l^2 / (2 sigma^2)): positive everywhere, and largest at
l = sigma^2, where c = e^(sigma^2 / 2). The weight is symmetric in l, hence c is not.
Defaults: sigma = 1.0, kernel = gaussian, as in the authors' public trainer. sigma_negative (used where A < 0) is None,
the symmetric form of the paper; the authors' later trainer halves sigma there. The laplacian and cauchy kernels are the
authors' ablation.
Differs: the product is formed in log space, because ratio times weight is inf * 0 in float32 beyond l = 88; the
ratio is not floored at 1e-9 inside the logarithm. Beyond sigma = 13 the peak itself no longer fits float32.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from replaybench.baseline import Declaration, Items, Knob, with_gradient


@dataclass(frozen=True, kw_only=True)
class Config:
    """Width of the trust weight in units of log-ratio; `sigma_negative` replaces it where A < 0."""

    sigma: PositiveFloat = 1.0
    sigma_negative: PositiveFloat | None = None
    kernel: Literal["gaussian", "laplacian", "cauchy"] = "gaussian"


def is_bounded(config: Config) -> bool:
    """Whether the kernel's tail beats the ratio's: gaussian always, laplacian up to sigma = 1, cauchy never."""
    widest = max(config.sigma, config.sigma_negative or config.sigma)
    return config.kernel == "gaussian" or (config.kernel == "laplacian" and widest <= 1.0)


DECLARATION = Declaration(
    paper="Lu et al. 2026",
    arxiv="2603.03955",
    bounded=is_bounded,
    knob=Knob(field="sigma", sweep=(0.1, 0.2, 0.5, 1.0, 2.0)),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """The ratio times a detached trust weight that decays with |l|, times the advantage."""
    log_ratio = items.log_ratio.detach()
    coefficient = torch.exp(log_ratio + _log_weight(log_ratio, items.advantage, config))
    return with_gradient(coefficient * items.advantage, coefficient * items.advantage, items.log_pi)


def _log_weight(log_ratio: Tensor, advantage: Tensor, config: Config) -> Tensor:
    sigma_negative = config.sigma if config.sigma_negative is None else config.sigma_negative
    distance = torch.where(advantage < 0, log_ratio / sigma_negative, log_ratio / config.sigma)
    if config.kernel == "gaussian":
        return -distance.square() / 2
    if config.kernel == "laplacian":
        return -distance.abs()
    return -torch.log1p(distance.square())
