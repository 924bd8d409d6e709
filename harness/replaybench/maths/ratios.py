"""Distances between the current policy pi and the behaviour policy mu, from log-probabilities.

Shape letters: B decisions, A action tokens, K bins. log_ratio l = log pi - log mu, rho = e^l.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replaybench.maths.shapes import check_shapes


def token_log_prob(logits_BAK: Tensor, action_tokens_BA: Tensor) -> Tensor:
    """Returns log pi(a|s) of each action token, [B, A], natural log."""
    return of_tokens(torch.log_softmax(logits_BAK, dim=-1), action_tokens_BA)


def of_tokens(log_p_BAK: Tensor, action_tokens_BA: Tensor) -> Tensor:
    """Returns the entry of each action token, [B, A]."""
    check_shapes(log_p=(log_p_BAK, "BAK"), action_tokens=(action_tokens_BA, "BA"))
    return log_p_BAK.gather(-1, action_tokens_BA.long().unsqueeze(-1)).squeeze(-1)


def cross_entropy(p_logits_BAK: Tensor, log_q_BAK: Tensor) -> Tensor:
    """Returns -sum p log q of each action token, [B, A], in nats: KL(p||q) + H(p), with KL's gradient by q."""
    check_shapes(p=(p_logits_BAK, "BAK"), log_q=(log_q_BAK, "BAK"))
    return -(torch.softmax(p_logits_BAK, dim=-1) * log_q_BAK).sum(-1)


def categorical_kl(p_logits_BAK: Tensor, q_logits_BAK: Tensor) -> Tensor:
    """Returns the exact KL(p||q) of each action token, [B, A], in nats."""
    check_shapes(p=(p_logits_BAK, "BAK"), q=(q_logits_BAK, "BAK"))
    log_p, log_q = torch.log_softmax(p_logits_BAK, dim=-1), torch.log_softmax(q_logits_BAK, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def categorical_entropy(logits_BAK: Tensor) -> Tensor:
    """Returns the exact entropy of each action token, [B, A], in nats."""
    log_p = torch.log_softmax(logits_BAK, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def ess_fraction(log_weight_N: Tensor) -> Tensor:
    """Returns the effective sample size as a fraction of N, a scalar in (0, 1]: (sum w)^2 / (N sum w^2)."""
    check_shapes(log_weight=(log_weight_N, "N"))
    log_ess = 2 * torch.logsumexp(log_weight_N, 0) - torch.logsumexp(2 * log_weight_N, 0)
    return (log_ess.exp() / len(log_weight_N)).clamp(max=1.0)


class OffPolicyness(NamedTuple):
    """How far pi is from the mu that acted, from samples of mu.

    k1, k2 and k3 estimate KL(mu||pi); ess is in (0, 1], 1 when pi = mu.
    """

    k1: float
    k2: float
    k3: float
    chi2: float
    ess: float
    abs_log_ratio_p95: float


def off_policyness(log_ratio: Tensor) -> OffPolicyness:
    """Summarises log-ratios of any shape.

    k1 = mean(-l), k2 = mean(l^2/2), k3 = mean(rho-1-l), chi2 = mean(rho^2)-1,
    ess = (sum rho)^2 / (N sum rho^2).
    """
    flat = log_ratio.detach().double().flatten()
    log_n = torch.log(torch.tensor(float(flat.numel()), dtype=torch.float64))
    log_sum_squares = torch.logsumexp(2 * flat, 0)
    return OffPolicyness(
        k1=float(-flat.mean()),
        k2=float(flat.square().mean() / 2),
        k3=float((torch.expm1(flat) - flat).mean()),
        chi2=float(torch.exp(log_sum_squares - log_n) - 1),
        ess=float(ess_fraction(flat)),
        abs_log_ratio_p95=quantile(flat.abs().cpu().numpy(), 0.95),
    )


def quantile(values_N: NDArray[np.floating[Any]], share: float) -> float:
    """Returns a quantile of one value or more, as numpy's (linear between values) at a fifth of its overhead."""
    place = share * (len(values_N) - 1)
    below, above = math.floor(place), math.ceil(place)
    parted = np.partition(values_N, (below, above))
    return float(parted[below] + (place - below) * (parted[above] - parted[below]))
