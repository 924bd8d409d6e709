"""The buffered protocol as a textbook writes it: what the harness is timed against, and what it must agree with.

A deque of transition objects, stacked with numpy for every batch; the whole network forward, in PyTorch's own layers,
at every update; AdamW as it comes; one environment and one observation at a time. It takes from the harness only what
is not the loop: the simulator, the weights, the baseline's formula and the random streams.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from replaybench.baseline import Items, evaluate_surrogate
from replaybench.buffered import training_plans
from replaybench.evaluate import open_world
from replaybench.policy import Policy, PolicyOutput
from replaybench.replay import minibatches
from replaybench.seeding import numpy_generator
from replaybench.spec import RunSpec
from replaybench.store import Log
from replaybench.train import log_stream, planned_baseline


@dataclass
class Transition:
    """One step of experience."""

    observation: NDArray[np.generic]
    action: NDArray[np.int64]
    log_mu: NDArray[np.float32]
    mu_logits: NDArray[np.float16]
    reward: float
    value: float
    next_value: float
    last: bool
    advantage: float = 0.0
    value_target: float = 0.0


class PlainNetwork(nn.Module):
    """The actor-critic in PyTorch's own layers, with the weights of the harness's."""

    mean: Tensor
    scale: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        weights = policy.state_dict()
        self.num_action_tokens = policy.settings["num_action_tokens"]
        self.register_buffer("mean", weights["mean"])
        self.register_buffer("scale", weights["scale"])
        sizes = [tuple(weights[name].shape) for name in _LAYERS]
        encoder, hidden, logits, value, out = (nn.Linear(inputs, outputs) for outputs, inputs in sizes)
        self.encoder = nn.Sequential(encoder, nn.ReLU(), nn.LayerNorm(encoder.out_features))
        self.policy_head = nn.Sequential(hidden, nn.ReLU(), nn.LayerNorm(hidden.out_features), logits)
        self.value_head = nn.Sequential(value, nn.ReLU(), nn.LayerNorm(value.out_features), out)
        self.load_state_dict(weights)

    def forward(self, observations: Tensor) -> PolicyOutput:
        features = self.encoder(((observations - self.mean) / self.scale).clamp(-5.0, 5.0))
        logits = self.policy_head(features).unflatten(-1, (self.num_action_tokens, -1))
        return PolicyOutput(logits, self.value_head(features.detach()).squeeze(-1))

    def policy_parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.policy_head.parameters()]

    def value_parameters(self) -> list[nn.Parameter]:
        return list(self.value_head.parameters())


_LAYERS = (
    "encoder.0.weight",
    "policy_head.0.weight",
    "policy_head.3.weight",
    "value_head.0.weight",
    "value_head.3.weight",
)


def plain_iterations(spec: RunSpec, log: Log, policy: Policy) -> Iterator[None]:
    """Collects and learns, an iteration a step, with stored GAE advantages and a KL penalty to the behaviour policy."""
    settings, train = spec.buffered, spec.train
    assert settings is not None and settings.environments == 1 and train.advantage.estimator == "gae_stored"
    baseline = planned_baseline(spec)
    config = baseline.config(spec.config)
    world = open_world(log.card.suite, log.card.suite_settings, log.card.task, collectors=1)
    environment = world.suite.make(world.task)
    goal_rng = numpy_generator(log_stream(spec), "collect")
    plans = training_plans(world, settings.first_goal_seed + spec.lineage, goal_rng)
    batch_rng = numpy_generator(log_stream(spec), "minibatches")
    optimiser = torch.optim.AdamW(
        [
            {"params": policy.policy_parameters(), "lr": train.learning_rate},
            {"params": policy.value_parameters(), "lr": train.value_learning_rate},
        ],
        weight_decay=0.0,
    )
    buffer: deque[Transition] = deque(maxlen=settings.capacity)
    observation, draws, age = None, None, 0
    updates = 0
    total = settings.iterations * settings.policy_updates
    for _ in range(settings.iterations):
        piece: list[Transition] = []
        for step in range(settings.collect_steps):
            if observation is None:
                plan = next(plans)
                draws = np.random.default_rng(plan.seed)
                observation, age = environment.reset(plan.goal, draws), 0
            assert draws is not None
            with torch.no_grad():
                output = policy(torch.from_numpy(observation[None]))
            logits = output.logits_BAK[0].numpy()
            shifted = logits - logits.max(-1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            cdf = np.exp(log_p.astype(np.float64)).cumsum(-1)
            action = (draws.random(len(log_p))[:, None] * cdf[:, -1:] >= cdf).sum(-1)
            log_mu = log_p[np.arange(len(action)), action]
            result = environment.step(action.astype(np.int16))
            age += 1
            over = result.terminated or age >= spec.evaluate.max_steps
            last = over or step == settings.collect_steps - 1
            next_value = 0.0
            if last and not result.terminated:
                with torch.no_grad():
                    next_value = float(policy(torch.from_numpy(result.observation[None])).value_B[0])
            value = float(output.value_B[0])
            if piece:
                piece[-1].next_value = value
            piece.append(
                Transition(
                    observation,
                    action,
                    log_mu,
                    logits.astype(np.float16),
                    np.float32(result.reward),
                    value,
                    next_value,
                    last,
                )
            )
            observation = None if over else result.observation
            if last:
                _store_advantages(piece, train.advantage.gamma, train.advantage.lam)
                buffer.extend(piece)
                piece = []
        for index in minibatches(len(buffer), train.batch_size, settings.sample_rounds, batch_rng):
            batch = [buffer[i] for i in index.tolist()]
            for reuse in range(settings.reuse):
                observations = torch.from_numpy(np.stack([t.observation for t in batch]))
                actions = torch.from_numpy(np.stack([t.action for t in batch]))
                log_mu_BA = torch.from_numpy(np.stack([t.log_mu for t in batch]))
                mu_logits = torch.from_numpy(np.stack([t.mu_logits for t in batch])).float()
                advantage = torch.tensor([t.advantage for t in batch], dtype=torch.float32)
                target = torch.tensor([t.value_target for t in batch], dtype=torch.float32)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                output = policy(observations)
                loss = 0.5 * (output.value_B - target).square().mean()
                if reuse % settings.actor_every == 0:
                    if settings.rate_decay == "cosine":
                        factor = 0.5 * (1 + np.cos(np.pi * updates / total))
                        optimiser.param_groups[0]["lr"] = factor * train.learning_rate
                        optimiser.param_groups[1]["lr"] = factor * train.value_learning_rate
                    log_p_BAK = torch.log_softmax(output.logits_BAK, -1)
                    log_pi = log_p_BAK.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
                    items = Items(
                        log_pi=log_pi,
                        log_mu=log_mu_BA,
                        advantage=advantage.unsqueeze(-1).expand_as(log_pi),
                        mask=torch.ones_like(log_pi, dtype=torch.bool),
                    )
                    score = evaluate_surrogate(baseline, config, items).score
                    loss = loss - (score * log_pi).sum() / (log_pi.numel() * (reuse + 1) ** 0.5)
                    log_mu_BAK = torch.log_softmax(mu_logits, -1)
                    kl = (log_mu_BAK.exp() * (log_mu_BAK - log_p_BAK)).sum(-1).mean()
                    loss = loss + train.kl_coefficient * kl
                    updates += 1
                optimiser.zero_grad()
                loss.backward()
                if reuse % settings.actor_every == 0:
                    torch.nn.utils.clip_grad_norm_(policy.policy_parameters(), train.max_grad_norm)
                optimiser.step()
        yield


def _store_advantages(piece: list[Transition], gamma: float, lam: float) -> None:
    """Generalised advantage estimation over one piece of an episode, with the values at collection."""
    following = 0.0
    for t in reversed(piece):
        delta = float(t.reward) + gamma * t.next_value - t.value
        following = delta + (0.0 if t.last else gamma * lam * following)
        t.advantage, t.value_target = following, following + t.value
