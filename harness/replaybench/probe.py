"""Measures the gradient that a correction makes of a log, summed over groups of episodes, for the bias-variance study.

Nothing is trained. The gradient of a decision is h grad log pi, with h the score coefficient of the correction, or of
joint importance sampling (the reference on the same decisions), or the advantage on the start policy's own episodes.
Shape letters: B decisions, A action tokens, K bins, P parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from replaybench.analysis.gradient_bias import GroupGradients, Sample
from replaybench.baseline import Baseline, evaluate_surrogate
from replaybench.errors import DataError, NumericalError
from replaybench.gradients import GradientMeter
from replaybench.learner import Learner, estimate_advantages
from replaybench.maths.ratios import token_log_prob
from replaybench.policy import Policy
from replaybench.replay import Replay, minibatches
from replaybench.spec import TrainSettings

CHUNK = 4096
MIN_UNITS = 8

# Maps the rows of a replay, the unit of each and the policy's logits [B, A, K] there to the scalar sum_b J_b.
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class Standardisation(NamedTuple):
    """Frozen shift and scale of advantages: a minibatch's own would make every correction depend on its batch."""

    shift: float
    scale: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Probed:
    """Decisions with frozen advantages.

    Args:
        replay: Whole episodes.
        advantage: [N] standardised advantages.
    """

    replay: Replay
    advantage: Tensor

    @property
    def num_episodes(self) -> int:
        return int(self.replay.ends.sum())


class GroupSums(NamedTuple):
    """gradient [K, P] summed over each group; squared_norm [K], the sum over its units; the groups' sizes."""

    gradient: Tensor
    squared_norm: Tensor
    sample: Sample


def fit_value(learner: Learner, rng: np.random.Generator) -> Standardisation:
    """Fits the value head on the learner's replay as a run's warm-up does; returns how to standardise advantages."""
    settings, replay = learner.settings, learner.replay
    batch_size = min(settings.batch_size, replay.num_steps)
    batches = minibatches(replay.num_steps, batch_size, settings.value_warmup_updates, rng)
    for update, index in enumerate(batches):
        learner.refresh_if_due(update, update * batch_size, len(index))
        learner.value_step(index.to(replay.log_mu.device))
    learner.refresh_advantages()
    if settings.advantage.normalise == "none":
        return Standardisation(0.0, 1.0)
    scale = float(learner.advantage.std())
    if not scale > 0:
        raise DataError("All advantages of the held-out episodes are equal; log episodes with different outcomes.")
    return Standardisation(float(learner.advantage.mean()), scale)


def probe_advantages(policy: Policy, replay: Replay, settings: TrainSettings, standard: Standardisation) -> Probed:
    """Returns the replay with advantages by the policy's value function as it is."""
    estimated = estimate_advantages(policy, replay, settings.advantage).advantage
    standardised = (estimated - standard.shift) / standard.scale
    return Probed(replay=replay, advantage=torch.from_numpy(standardised).float().to(replay.log_mu.device))


def method_objective(
    policy: Policy, baseline: Baseline, config: Any, probed: Probed, settings: TrainSettings, start_version: int
) -> Objective:
    """Returns the surrogate's objective in its normal form, as the first update of a run would see it."""
    replay = probed.replay
    # The advantages are standardised already, by constants.
    advantage = settings.advantage.model_copy(update={"normalise": "none"})
    frozen = settings.model_copy(update={"advantage": advantage})
    learner = Learner(policy, baseline, config, replay, frozen, start_version)
    learner.refresh_advantages()
    learner.advantage = probed.advantage

    def objective(index: Tensor, unit_B: Tensor, logits_BAK: Tensor) -> Tensor:
        log_pi_BA = token_log_prob(logits_BAK, replay.action_tokens[index])
        total = logits_BAK.new_zeros(())
        for piece in _pieces(unit_B, apart=baseline.declaration.batch_statistics):
            items = learner.items(index[piece], log_pi_BA[piece], logits_BAK[piece])
            value = evaluate_surrogate(baseline, config, items)
            total = total + (value.score * items.log_pi).sum()
            if value.logits_score is not None:
                total = total + (value.logits_score * logits_BAK[piece]).sum()
        return total

    return objective


def joint_objective(probed: Probed) -> Objective:
    """Returns the objective of importance sampling with the joint ratio of all tokens of a decision.

    Unbiased over actions on the logged states: E_mu[rho A grad log pi] = E_pi[A grad log pi].
    """
    replay = probed.replay

    def objective(index: Tensor, unit_B: Tensor, logits_BAK: Tensor) -> Tensor:
        log_pi_BA = token_log_prob(logits_BAK, replay.action_tokens[index])
        log_ratio_B = (log_pi_BA.detach() - replay.log_mu[index]).sum(-1)
        score_B = log_ratio_B.exp() * probed.advantage[index]
        if not torch.isfinite(score_B).all():
            raise NumericalError(
                f"The joint ratio of the reference overflows; the largest log-ratio is {float(log_ratio_B.max()):.3g}. "
                "This log is too far from the start policy to measure bias on; use a fresher level."
            )
        return (score_B.unsqueeze(-1) * log_pi_BA).sum()

    return objective


def on_policy_objective(probed: Probed) -> Objective:
    """Returns the objective whose gradient is A grad log pi, for episodes that the policy made itself."""

    def objective(index: Tensor, unit_B: Tensor, logits_BAK: Tensor) -> Tensor:
        log_pi_BA = token_log_prob(logits_BAK, probed.replay.action_tokens[index])
        return (probed.advantage[index].unsqueeze(-1) * log_pi_BA).sum()

    return objective


def group_sums(
    meter: GradientMeter, replay: Replay, objective: Objective, num_groups: int, episodes_per_unit: int = 1
) -> GroupSums:
    """Returns the gradients of `objective` summed over groups of units, each unit some consecutive episodes.

    Raises:
        DataError: The replay has fewer than MIN_UNITS units.
    """
    last = np.flatnonzero(replay.ends)
    num_units = len(last) // episodes_per_unit
    if num_units < MIN_UNITS:
        raise DataError(
            f"{len(last)} episodes make {num_units} batches of {episodes_per_unit}; at least {MIN_UNITS} are needed to "
            "tell bias from noise. Log more episodes."
        )
    bounds = np.append(0, last[episodes_per_unit - 1 :: episodes_per_unit][:num_units] + 1)
    groups = np.array_split(np.arange(num_units), min(num_groups, num_units))
    gradient, squared_norm = [], []
    for units in groups:
        chunks = _chunks(units, bounds, meter.most_decisions or CHUNK)
        parts = [_measure(meter, replay, objective, bounds[chunk[0] : chunk[-1] + 2]) for chunk in chunks]
        gradient.append(torch.stack([part[0] for part in parts]).sum(0))
        squared_norm.append(torch.stack([part[1] for part in parts]).sum())
    sample = Sample(
        units=np.array([len(units) for units in groups], dtype=np.float64),
        steps=np.array([bounds[units[-1] + 1] - bounds[units[0]] for units in groups], dtype=np.float64),
    )
    return GroupSums(torch.stack(gradient), torch.stack(squared_norm), sample)


def combine(
    method: GroupSums, reference: GroupSums, fresh: GroupSums | None, episodes_per_unit: int = 1
) -> GroupGradients:
    """Returns the inner products that the analysis reads; method and reference have the same groups."""
    sums = [part.gradient for part in (method, reference, fresh) if part is not None]
    stacked = torch.cat(sums).double()
    return GroupGradients(
        gram=(stacked @ stacked.mT).cpu().numpy(),
        squared_norm=method.squared_norm.cpu().numpy(),
        log=method.sample,
        fresh=None if fresh is None else fresh.sample,
        episodes_per_unit=episodes_per_unit,
    )


def _measure(
    meter: GradientMeter, replay: Replay, objective: Objective, bounds: np.ndarray[Any, Any]
) -> tuple[Tensor, Tensor]:
    """Returns the summed gradient [P] and the sum of squared norms of the units between these bounds."""
    device = replay.log_mu.device
    index = torch.arange(int(bounds[0]), int(bounds[-1]), device=device)
    unit_B = torch.repeat_interleave(torch.from_numpy(np.diff(bounds))).to(device)
    observations = replay.observations[replay.row[index]]
    total, squared_norm = meter.measure(observations, unit_B, lambda logits: objective(index, unit_B, logits))
    return total, squared_norm.sum()


def _chunks(units: np.ndarray[Any, Any], bounds: np.ndarray[Any, Any], most: int) -> Iterator[Sequence[int]]:
    """Yields consecutive units of at most `most` decisions together, or one longer unit alone."""
    chunk: list[int] = []
    for unit in units.tolist():
        if chunk and bounds[unit + 1] - bounds[chunk[0]] > most:
            yield chunk
            chunk = []
        chunk.append(unit)
    yield chunk


def _pieces(unit_B: Tensor, *, apart: bool) -> list[slice]:
    """Returns the rows to hand to a surrogate at once: all, or each unit by itself if the others must not matter."""
    ends = torch.bincount(unit_B).cumsum(0).tolist() if apart else [len(unit_B)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
