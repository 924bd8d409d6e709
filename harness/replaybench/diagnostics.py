"""Turns what happened in a run into rows of (update, metric, item, value)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from replaybench.evaluate import Outcome
from replaybench.learner import CHUNK, Step
from replaybench.maths.ratios import categorical_kl, off_policyness, quantile, token_log_prob
from replaybench.policy import Policy
from replaybench.replay import Replay

NEAR_ZERO = 1e-3
OLD_UPDATES, NEW_UPDATES = 10, 2


@dataclass
class Stopwatch:
    """Adds up the seconds that a part of a run takes, and how many things it did in them."""

    seconds: float = 0.0
    count: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time inside."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


@dataclass
class Rows:
    """Measurements of a run. `item` numbers the evaluation episode where a metric has one value for each, else -1.

    acting, learning: What environment steps and learner samples took here. Clocks are no rows: they do not repeat.
    """

    update: list[int] = field(default_factory=list)
    metric: list[str] = field(default_factory=list)
    item: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    acting: Stopwatch = field(default_factory=Stopwatch, compare=False)
    learning: Stopwatch = field(default_factory=Stopwatch, compare=False)

    def add(self, update: int, metric: str, value: float, item: int = -1) -> None:
        """Appends one measurement made after `update` policy updates."""
        self.update.append(update)
        self.metric.append(metric)
        self.item.append(item)
        self.value.append(float(value))


def outcome_rows(rows: Rows, update: int, prefix: str, outcome: Outcome) -> None:
    """Writes the means of an evaluation and, for pairing by goal, each episode's success."""
    rows.add(update, f"{prefix}success", outcome.success.mean())
    rows.add(update, f"{prefix}episode_length", outcome.length.mean())
    rows.add(update, f"{prefix}return", outcome.total_reward.mean())
    for item, success in enumerate(outcome.success):
        rows.add(update, f"{prefix}episode_success", success, item)


def step_rows(rows: Rows, update: int, step: Step, lag_updates: Tensor | None = None) -> None:
    """Writes off-policyness of a minibatch to the behaviour policy, the weights' effect and the sizes of the update.

    Args:
        lag_updates: [B] lag of each decision, by which it is old or new; None where lags mean nothing.
    """
    raw = off_policyness(step.items.log_ratio)
    rows.add(update, "ess_token_raw", raw.ess)
    rows.add(update, "kl_k1_token_raw", raw.k1)
    rows.add(update, "kl_k2_token_raw", raw.k2)
    rows.add(update, "kl_k3_token_raw", raw.k3)
    rows.add(update, "chi2_token_raw", raw.chi2)
    rows.add(update, "abs_log_ratio_p95_token", raw.abs_log_ratio_p95)
    joint = off_policyness(step.items.log_ratio.sum(-1))
    rows.add(update, "ess_joint_raw", joint.ess)
    rows.add(update, "abs_log_ratio_p95_joint", joint.abs_log_ratio_p95)
    advantage, score = step.items.advantage, step.value.score
    acts = advantage != 0
    weight = torch.where(acts, score / torch.where(acts, advantage, 1.0), 0.0)
    # u < w rho, not u / rho < w: where rho underflows both are 0.
    is_suppressed = weight.abs() < NEAR_ZERO * torch.exp(step.items.log_ratio)
    for sign, chosen in (("positive", advantage > 0), ("negative", advantage < 0)):
        if chosen.any():
            rows.add(update, f"ess_token_applied_{sign}", _ess(weight[chosen]))
            rows.add(update, f"near_zero_share_{sign}", float((weight[chosen].abs() < NEAR_ZERO).double().mean()))
            rows.add(update, f"suppressed_share_{sign}", float(is_suppressed[chosen].double().mean()))
    rows.add(update, "max_abs_weight", float(weight.abs().max()))
    rows.add(update, "mean_abs_score", float(score.abs().double().mean()))
    rows.add(update, "score_share_back", score_share_back(score, step.items.log_ratio))
    rows.add(update, "grad_norm", step.grad_norm)
    rows.add(update, "policy_loss", step.policy_loss)
    rows.add(update, "value_loss", step.value_loss)
    if lag_updates is not None:
        _bucket_rows(rows, update, step, weight, lag_updates)


def _bucket_rows(rows: Rows, update: int, step: Step, weight_BA: Tensor, lag_updates_B: Tensor) -> None:
    """Writes the same by age of the data and sign of the advantage; a bucket without items has no row.

    Age is that of the decision: old from OLD_UPDATES updates of lag on, new up to NEW_UPDATES. Shape letters: N items,
    G buckets, M sums.
    """
    log_ratio_N, advantage_N, weight_N, size_N = (
        part.detach().double().cpu().numpy().ravel()
        for part in (step.items.log_ratio, step.items.advantage, weight_BA, step.value.score.abs())
    )
    lag_N = lag_updates_B.cpu().numpy().repeat(len(log_ratio_N) // len(lag_updates_B))
    is_old = lag_N >= OLD_UPDATES
    rows.add(update, "score_share_old", float(size_N[is_old].sum() / size_N.sum()) if size_N.any() else 0.0)
    ages, signs = (
        {"old": is_old, "new": lag_N <= NEW_UPDATES},
        {"positive": advantage_N > 0, "negative": advantage_N < 0},
    )
    buckets = {f"{age}_{sign}": in_age & in_sign for age, in_age in ages.items() for sign, in_sign in signs.items()}
    buckets = {name: chosen for name, chosen in buckets.items() if chosen.any()}
    ratio_N, u_N = np.exp(log_ratio_N), np.abs(weight_N)
    # One product sums every column over every bucket.
    columns_MN = np.stack(
        [ratio_N, ratio_N**2, log_ratio_N, log_ratio_N**2, u_N < NEAR_ZERO, u_N < NEAR_ZERO * ratio_N, u_N, u_N**2]
    )
    sums_MG = columns_MN @ np.stack([*buckets.values()], axis=1) if buckets else columns_MN[:, :0]
    for (name, chosen), sums in zip(buckets.items(), sums_MG.T.tolist(), strict=True):
        n = int(chosen.sum())
        ratio, ratio2, log_ratio, log_ratio2, near_zero, suppressed, u, u2 = sums
        rows.add(update, f"ess_token_raw_{name}", ratio**2 / (n * ratio2))
        rows.add(update, f"kl_k1_token_raw_{name}", -log_ratio / n)
        rows.add(update, f"kl_k2_token_raw_{name}", log_ratio2 / (2 * n))
        rows.add(update, f"kl_k3_token_raw_{name}", (ratio - n - log_ratio) / n)
        rows.add(update, f"chi2_token_raw_{name}", ratio2 / n - 1)
        rows.add(update, f"abs_log_ratio_p95_token_{name}", quantile(np.abs(log_ratio_N[chosen]), 0.95))
        rows.add(update, f"near_zero_share_{name}", near_zero / n)
        rows.add(update, f"suppressed_share_{name}", suppressed / n)
        # An effective size of weights of both signs means nothing.
        if weight_N.min() >= 0:
            rows.add(update, f"ess_token_applied_{name}", u**2 / (n * u2) if u2 > 0 else 0.0)


def staleness_rows(rows: Rows, update: int, lag_updates: Tensor) -> None:
    """Writes how old the decisions of a minibatch are, in policy updates; old is a lag of at least ten.

    Args:
        lag_updates: [B].
    """
    lag = lag_updates.double()
    rows.add(update, "lag_updates_mean", float(lag.mean()))
    rows.add(update, "lag_updates_p50", float(lag.quantile(0.5)))
    rows.add(update, "lag_updates_p95", float(lag.quantile(0.95)))
    rows.add(update, "lag_updates_max", float(lag.max()))
    rows.add(update, "old_data_share", float((lag >= OLD_UPDATES).double().mean()))


def score_share_back(score: Tensor, log_ratio: Tensor) -> float:
    """Returns the share of sum |h| from items whose gradient moves log pi back to log mu, i.e. h l < 0.

    0.5 is no preference. A clip that only cuts items that would move further away leaves those that move back.
    """
    magnitude = score.abs().double()
    total = float(magnitude.sum())
    return float(magnitude[score * log_ratio < 0].sum()) / total if total > 0 else 0.0


def distance_rows(rows: Rows, update: int, policy: Policy, start: Policy, replay: Replay) -> None:
    """Writes how far the trained policy is from behaviour and start policy, on the replayed states."""
    log_pi_NA, log_start_NA, kl_NA = _compare(policy, start, replay)
    to_behaviour = off_policyness(log_pi_NA - replay.log_mu)
    rows.add(update, "end_kl_k3_behaviour", to_behaviour.k3)
    rows.add(update, "end_ess_token_behaviour", to_behaviour.ess)
    rows.add(update, "end_abs_log_ratio_p95_behaviour", to_behaviour.abs_log_ratio_p95)
    rows.add(update, "end_abs_log_ratio_p95_start", off_policyness(log_pi_NA - log_start_NA).abs_log_ratio_p95)
    rows.add(update, "end_kl_start", float(kl_NA.double().mean()))


def _compare(policy: Policy, start: Policy, replay: Replay) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log pi, log pi_start and the exact KL(start||policy) of every logged action token, [N, A] each."""
    parts = []
    with torch.no_grad():
        for rows, tokens in zip(replay.row.split(CHUNK), replay.action_tokens.split(CHUNK), strict=True):
            observations = replay.observations[rows]
            logits, start_logits = policy(observations).logits_BAK, start(observations).logits_BAK
            kl_BA = categorical_kl(start_logits, logits)
            parts.append((token_log_prob(logits, tokens), token_log_prob(start_logits, tokens), kl_BA))
    log_pi, log_start, kl = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_pi, log_start, kl


def _ess(weight: Tensor) -> float:
    """Returns (sum u)^2 / (N sum u^2) of the weights that multiply the advantage, 0 where all are 0."""
    u = weight.double()
    squares = float(u.square().sum())
    return float(u.sum().square()) / (u.numel() * squares) if squares > 0 else 0.0
