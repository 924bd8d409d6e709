"""Turns what happened in a run into rows of (update, metric, item, value)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from replaybench.evaluate import Outcome
from replaybench.learner import CHUNK, Step
from replaybench.maths.ratios import categorical_kl, off_policyness, token_log_prob
from replaybench.policy import Policy
from replaybench.replay import Replay

NEAR_ZERO = 1e-3
OLD_UPDATES = 10


@dataclass
class Rows:
    """Measurements of a run. `item` numbers the evaluation episode where a metric has one value for each, else -1."""

    update: list[int] = field(default_factory=list)
    metric: list[str] = field(default_factory=list)
    item: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

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


def step_rows(rows: Rows, update: int, step: Step) -> None:
    """Writes off-policyness of a minibatch to the behaviour policy, the weights' effect and the sizes of the update."""
    raw = off_policyness(step.items.log_ratio)
    rows.add(update, "ess_token_raw", raw.ess)
    rows.add(update, "kl_k3_token_raw", raw.k3)
    rows.add(update, "abs_log_ratio_p95_token", raw.abs_log_ratio_p95)
    joint = off_policyness(step.items.log_ratio.sum(-1))
    rows.add(update, "ess_joint_raw", joint.ess)
    rows.add(update, "abs_log_ratio_p95_joint", joint.abs_log_ratio_p95)
    advantage, score = step.items.advantage, step.value.score
    acts = advantage != 0
    weight = torch.where(acts, score / torch.where(acts, advantage, 1.0), 0.0)
    for sign, chosen in (("positive", advantage > 0), ("negative", advantage < 0)):
        if chosen.any():
            rows.add(update, f"ess_token_applied_{sign}", _ess(weight[chosen]))
            rows.add(update, f"near_zero_share_{sign}", float((weight[chosen].abs() < NEAR_ZERO).double().mean()))
    rows.add(update, "mean_abs_score", float(score.abs().double().mean()))
    rows.add(update, "score_share_back", score_share_back(score, step.items.log_ratio))
    rows.add(update, "grad_norm", step.grad_norm)
    rows.add(update, "policy_loss", step.policy_loss)
    rows.add(update, "value_loss", step.value_loss)


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
