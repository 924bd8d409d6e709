"""One optimiser step from replayed decisions; shared by the sweep's runs and by the lineage that made the logs.

Shape letters: B decisions, A action tokens (items of a decision), K bins.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from replaybench.baseline import Baseline, Items, SurrogateValue, evaluate_surrogate
from replaybench.errors import ConfigError, NumericalError
from replaybench.estimators import NEEDS as ESTIMATOR_NEEDS
from replaybench.estimators import Columns, Estimator, Parameters, find_estimator
from replaybench.maths.advantages import Advantages
from replaybench.maths.ratios import cross_entropy, of_tokens, token_log_prob
from replaybench.policy import ActionValuePolicy, Policy, ValueHeadPolicy
from replaybench.replay import (
    Replay,
    comparable_episodes,
    episode_minibatches,
    minibatches,
    starts_pass,
    weighted_minibatches,
)
from replaybench.spec import AdvantageSettings, TrainSettings

CHUNK = 8192


class Step(NamedTuple):
    """What one policy update did, for diagnostics; items and value are detached."""

    items: Items
    value: SurrogateValue
    grad_norm: float
    policy_loss: float
    value_loss: float


class Learner:
    """A policy in training: its optimiser, its baseline, and the advantages of the replay it learns from.

    Args:
        policy: Trained in place.
        baseline: The off-policy correction with its `config`.
        replay: The logged decisions.
        settings: Shared training settings.
        start_version: Optimiser steps that had changed the policy before, from which lags are counted.
    """

    def __init__(
        self,
        policy: Policy,
        baseline: Baseline,
        config: Any,
        replay: Replay,
        settings: TrainSettings,
        start_version: int = 0,
    ) -> None:
        if settings.kl_coefficient > 0 and replay.mu_logits is None:
            raise ConfigError(
                "kl_coefficient needs mu_logits in the log; log the behaviour policy's logits or set it to 0."
            )
        self.fits_action_values = "action_values" in find_estimator(settings.advantage.estimator).needs
        if self.fits_action_values and not isinstance(policy, ActionValuePolicy):
            raise ConfigError(
                f"Advantage estimator '{settings.advantage.estimator}' needs action_values, which the policy lacks: "
                f"{ESTIMATOR_NEEDS['action_values']}; or choose another estimator."
            )
        self.policy, self.baseline, self.config = policy, baseline, config
        self.replay, self.settings = replay, settings
        self.start_version = start_version
        self.num_updates = 0
        self.rate_factor = 1.0
        self.optimiser = torch.optim.AdamW(
            [
                {"params": policy.policy_parameters(), "lr": settings.learning_rate},
                {"params": policy.value_parameters(), "lr": settings.value_learning_rate},
            ],
            weight_decay=0.0,
            fused=settings.fused_optimiser or None,
        )

    def scale_rates(self, factor: float) -> None:
        """Sets both learning rates to `factor` times those of the settings."""
        self.rate_factor = factor
        for group, rate in zip(
            self.optimiser.param_groups,
            (self.settings.learning_rate, self.settings.value_learning_rate),
            strict=True,
        ):
            group["lr"] = factor * rate

    def refresh_advantages(self) -> None:
        """Estimates advantages and value targets with the present value function, and renews the proximal policy."""
        estimated = estimate_advantages(self.policy, self.replay, self.settings.advantage)
        device = self.replay.log_mu.device
        if "log_prox" in self.baseline.declaration.needs:
            self.log_prox = log_pi_of_log(self.policy, self.replay)
        self.advantage = torch.from_numpy(estimated.advantage).float().to(device)
        self.value_target = torch.from_numpy(estimated.value_target).float().to(device)

    def refresh_if_due(self, update: int, used: int, batch_size: int) -> None:
        """Estimates advantages anew before a batch, if the settings say so.

        Args:
            update: Updates made so far.
            used: Decisions that they used.
            batch_size: Decisions of the batch that comes.
        """
        every = self.settings.advantage.recompute_every
        is_due = starts_pass(used, batch_size, self.replay.num_steps) if every == "epoch" else update % every == 0
        if is_due:
            self.refresh_advantages()

    def batches(self, updates: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yields the minibatches that the baseline asks for: shuffled, weighted by lag, or of whole episodes."""
        replay, batch_size = self.replay, self.settings.batch_size
        if "episodes" in self.baseline.declaration.needs:
            return episode_minibatches(replay.ends, batch_size, updates, rng)
        if self.baseline.sampling_weight is not None:
            weight = self.baseline.sampling_weight(lags(replay, self.start_version), self.config)
            return weighted_minibatches(weight, batch_size, updates, rng)
        return minibatches(replay.num_steps, batch_size, updates, rng)

    def warm_up(self, rng: np.random.Generator) -> None:
        """Fits the value head alone, as often as the settings say."""
        settings, replay = self.settings, self.replay
        batches = minibatches(replay.num_steps, settings.batch_size, settings.value_warmup_updates, rng)
        for update, index in enumerate(batches):
            self.refresh_if_due(update, update * settings.batch_size, len(index))
            self.value_step(index.to(replay.log_mu.device))

    def lags(self, index: Tensor) -> Tensor:
        """Returns policy lag in updates of these decisions to the policy as it is, [B]."""
        return lags(self.replay, self.start_version)[index] + self.num_updates

    def value_features(self, index: Tensor) -> Tensor | None:
        """Returns what the value head reads of a minibatch until the policy moves, or None if it reads all there is."""
        if self.fits_action_values or not isinstance(self.policy, ValueHeadPolicy):
            return None
        with self._autocast():
            return self.policy.value_features(self._observations(index))

    def value_step(self, index: Tensor, features: Tensor | None = None) -> float:
        """Fits the value head alone on one minibatch; returns the loss.

        Args:
            features: Of `value_features`, so that they are not computed again.
        """
        self.optimiser.zero_grad(set_to_none=True)
        with self._autocast():
            if self.fits_action_values:
                predicted_B = self._action_value(index)
            elif features is not None and isinstance(self.policy, ValueHeadPolicy):
                predicted_B = self.policy.value_of(features)
            else:
                predicted_B = self.policy.value(self._observations(index))
        loss = 0.5 * (_widened(predicted_B) - self.value_target[index]).square().mean()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def policy_step(self, index: Tensor, policy_scale: float = 1.0) -> Step:
        """Makes one update of policy and value head on one minibatch.

        Args:
            policy_scale: Factor of the surrogate's gradient, before it is clipped.

        Raises:
            NumericalError: The surrogate, its gradient or the value loss is not finite.
        """
        replay, settings = self.replay, self.settings
        with self._autocast():
            output = self.policy(self._observations(index))
        logits_BAK = _widened(output.logits_BAK)
        log_p_BAK = torch.log_softmax(logits_BAK, -1)
        items = self.items(index, of_tokens(log_p_BAK, replay.action_tokens[index]), logits_BAK)
        value = evaluate_surrogate(self.baseline, self.config, items)
        num_items = items.mask.sum()
        # The policy gradient in its normal form: the score is a constant, log pi carries the gradient.
        policy_loss = -(value.score * items.log_pi).sum() / num_items
        if value.logits_score is not None:
            policy_loss = policy_loss - (value.logits_score * logits_BAK).sum() / num_items
        predicted_B = self._action_value(index) if self.fits_action_values else _widened(output.value_B)
        value_loss = 0.5 * (predicted_B - self.value_target[index]).square().mean()
        loss = policy_scale * policy_loss + value_loss
        if settings.kl_coefficient > 0 and replay.mu_logits is not None:
            # KL(mu||pi) but for mu's entropy, which has no gradient.
            loss = loss + settings.kl_coefficient * cross_entropy(replay.mu_logits[index].float(), log_p_BAK).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.policy.policy_parameters(), settings.max_grad_norm)
        if not torch.isfinite(loss) or not torch.isfinite(grad_norm):
            raise NumericalError(
                f"Loss {float(loss.detach()):.3g} or gradient norm {float(grad_norm):.3g} is not finite. "
                "Lower the learning rate or use a bounded baseline."
            )
        if self.baseline.learning_rate_scale is not None:
            scale = self.baseline.learning_rate_scale(items, self.config)
            self.optimiser.param_groups[0]["lr"] = scale * self.rate_factor * settings.learning_rate
        self.optimiser.step()
        self.num_updates += 1
        return Step(
            items=items,
            value=value,
            grad_norm=float(grad_norm),
            policy_loss=-float(value.surrogate.sum() / num_items),
            value_loss=float(value_loss.detach()),
        )

    def items(self, index: Tensor, log_pi_BA: Tensor, logits_BAK: Tensor) -> Items:
        """Returns the items of a batch: one an action token, or one a step with the joint log-probability."""
        replay, needs = self.replay, self.baseline.declaration.needs
        is_joint = self.settings.granularity == "step"

        def per_item(log_p_BA: Tensor) -> Tensor:
            return log_p_BA.sum(-1, keepdim=True) if is_joint else log_p_BA

        log_pi = per_item(log_pi_BA)
        mu_logits = replay.mu_logits if "mu_logits" in needs else None
        return Items(
            log_pi=log_pi,
            log_mu=per_item(replay.log_mu[index]),
            advantage=self._advantage(index).unsqueeze(-1).expand_as(log_pi),
            mask=torch.ones_like(log_pi, dtype=torch.bool),
            logits=logits_BAK if mu_logits is not None else None,
            mu_logits=mu_logits[index].float() if mu_logits is not None else None,
            log_prox=per_item(self.log_prox[index]) if "log_prox" in needs else None,
            lag_updates=self.lags(index) if "lag_updates" in needs else None,
            episode=replay.episode[index] if "episodes" in needs else None,
        )

    def _autocast(self) -> torch.autocast:
        device = self.replay.log_mu.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    def _action_value(self, index: Tensor) -> Tensor:
        return action_values_of(self.policy, self._observations(index), self.replay.action_tokens[index])

    def _observations(self, index: Tensor) -> Tensor:
        return self.replay.observations[self.replay.row[index]]

    def _advantage(self, index: Tensor) -> Tensor:
        advantage_B = self.advantage[index]
        if self.settings.advantage.normalise == "batch":
            advantage_B = (advantage_B - advantage_B.mean()) / (advantage_B.std() + 1e-8)
        return advantage_B


def _widened(made: Tensor) -> Tensor:
    """Returns at least float32, in which losses are computed."""
    return made.to(torch.promote_types(made.dtype, torch.float32))


def lags(replay: Replay, start_version: int) -> Tensor:
    """Returns start version - behaviour version of each decision, [N]."""
    return torch.from_numpy(start_version - replay.behaviour_version).to(replay.log_mu.device)


def estimate_advantages(policy: Policy, replay: Replay, settings: AdvantageSettings) -> Advantages:
    """Returns advantages and value targets of every decision of the replay, [N] float64.

    Raises:
        NumericalError: An estimate is not finite.
        DataError: The estimator compares episodes, and one has no other to be compared with.
    """
    estimator = find_estimator(settings.estimator)
    parameters = Parameters(settings.gamma, settings.lam, settings.rho_bar, settings.c_bar, settings.alpha)
    estimated = estimator.estimate(_columns(policy, replay, estimator), parameters)
    if not all(np.isfinite(column).all() for column in estimated):
        raise NumericalError(
            f"Advantages or value targets of estimator '{estimator.name}' are not finite. Use fresher data, truncate "
            "its ratios (alpha = 1), or lower the value head's learning rate."
        )
    return estimated


def _columns(policy: Policy, replay: Replay, estimator: Estimator) -> Columns:
    """Returns what the estimator reads, and no more: each column costs a pass over the replay."""
    needs = estimator.needs
    value, next_value = replay.value, replay.next_value
    if not estimator.logged_values:
        all_values = predict_values(policy, replay)
        row = replay.row.cpu().numpy()
        value, next_value = all_values[row], np.where(replay.terminal, 0.0, all_values[row + 1])
    log_pi = log_ratio = None
    if "log_ratio" in needs or "log_pi" in needs:
        log_pi_NA = log_pi_of_log(policy, replay)
        log_pi = log_pi_NA.double().sum(-1).cpu().numpy()
        log_ratio = (log_pi_NA - replay.log_mu).double().sum(-1).cpu().numpy()
    return Columns(
        reward=replay.reward,
        value=value,
        next_value=next_value,
        ends=replay.ends,
        log_ratio=log_ratio,
        log_pi=log_pi,
        group=comparable_episodes(replay) if "groups" in needs else None,
        action_value=predict_action_values(policy, replay) if "action_values" in needs else None,
    )


def action_values_of(policy: Policy, observations: Tensor, action_tokens: Tensor) -> Tensor:
    """Returns Q of each logged action, [B], with gradient; the policy has one action token and action values."""
    assert isinstance(policy, ActionValuePolicy)
    return policy.action_values(observations).gather(-1, action_tokens.long()).squeeze(-1)


def predict_action_values(policy: Policy, replay: Replay) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Returns Q of every logged action of the replay, [N] float64."""
    with torch.no_grad():
        chunks = (
            action_values_of(policy, replay.observations[rows], tokens)
            for rows, tokens in zip(replay.row.split(CHUNK), replay.action_tokens.split(CHUNK), strict=True)
        )
        return end_to_end(chunks, replay.num_steps).double().cpu().numpy()


def predict_values(policy: Policy, replay: Replay) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Returns the value of every observation of the replay, [N+E] float64."""
    with torch.no_grad():
        values = (policy.value(chunk) for chunk in replay.observations.split(CHUNK))
        return end_to_end(values, len(replay.observations)).double().cpu().numpy()


def log_pi_of_log(policy: Policy, replay: Replay) -> Tensor:
    """Returns the log-probability of every logged action token under the policy, [N, A]."""
    with torch.no_grad():
        chunks = (
            token_log_prob(policy(replay.observations[rows]).logits_BAK, tokens)
            for rows, tokens in zip(replay.row.split(CHUNK), replay.action_tokens.split(CHUNK), strict=True)
        )
        return end_to_end(chunks, replay.num_steps)


def end_to_end(chunks: Iterable[Tensor], length: int) -> Tensor:
    """Returns the rows of all chunks, `length` in all.

    Written as they come: small results that are kept between large temporary ones would keep the heap from shrinking.
    """
    rows = None
    start = 0
    for chunk in chunks:
        if rows is None:
            rows = chunk.new_empty((length, *chunk.shape[1:]))
        rows[start : start + len(chunk)] = chunk
        start += len(chunk)
    assert rows is not None and start == length
    return rows
