"""SAPO: soft adaptive policy optimisation, a sigmoid gate on the ratio (arXiv 2511.20347).

J = (4 / tau) s(tau (rho - 1)) A with the logistic function s, so c = 4 s (1 - s) rho, which is 1 at rho = 1 and
decays like rho e^(-tau |rho - 1|). A smaller temperature is a wider gate.
Defaults: tau = 1.0 and, where A < 0, 1.05, the paper's. tau_negative = None stands for 1.05 tau, so that sweeping the
knob widens both signs together. (The GIPO authors' own runs used 2.0 for A < 0.)
Differs: c is formed in log space and needs no clamp on rho, where public trainers clamp l to [-20, 20]. The
harness averages over all items; the paper averages within a sequence first.
"""

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from replaybench.baseline import Declaration, Items, Knob, with_gradient

NEGATIVE_OVER_POSITIVE = 1.05
LOG_4 = 1.3862943611198906


@dataclass(frozen=True, kw_only=True)
class Config:
    """Temperature of the gate; `tau_negative` replaces it where A < 0."""

    tau: PositiveFloat = 1.0
    tau_negative: PositiveFloat | None = None


DECLARATION = Declaration(
    paper="SAPO 2025",
    arxiv="2511.20347",
    bounded=True,
    knob=Knob(field="tau", sweep=(0.5, 1.0, 2.0, 4.0, 8.0), wider=False),
)


def surrogate(items: Items, config: Config) -> Tensor:
    """A sigmoid of the ratio in place of the ratio, times the advantage."""
    tau_negative = NEGATIVE_OVER_POSITIVE * config.tau if config.tau_negative is None else config.tau_negative
    tau = torch.full_like(items.advantage, config.tau).masked_fill(items.advantage < 0, tau_negative)
    log_ratio = items.log_ratio.detach()
    # expm1 keeps the digits of rho - 1 near rho = 1, where the gate is steepest.
    gate_input = tau * torch.expm1(log_ratio)
    gate = 4 / tau * torch.sigmoid(gate_input)
    coefficient = torch.exp(LOG_4 + logsigmoid(gate_input) + logsigmoid(-gate_input) + log_ratio)
    return with_gradient(gate * items.advantage, coefficient * items.advantage, items.log_pi)
