"""Acts with a policy in several environments at once and returns complete episodes.

Every episode draws its actions from a stream of its own by inverse CDF, so two policies that are compared on
the same plans use common random numbers.
Shape letters: n active environments, A action tokens, K bins.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from replaybench.episode import Episode
from replaybench.policy import LoneActingPolicy, Policy
from replaybench.seeding import seed_for
from replaybench.suites import Environment, Suite


class EpisodePlan(NamedTuple):
    """What fixes an episode before it starts: its goal (goal seed, index) and the seed of its draws."""

    goal: tuple[int, int]
    seed: int


class Acting(NamedTuple):
    """How a policy acts: `greedy` takes the likeliest bin, else bins are sampled."""

    max_steps: int
    greedy: bool = False
    keep_logits: bool = True


class Labels(NamedTuple):
    """What is written on each episode besides what happened in it."""

    task: str
    instruction: str
    simulator: str
    behaviour_version: int
    prefix: str


# Maps observations [n, ...] to logits [n, A, K] and values [n].
Actor = Callable[[NDArray[np.generic]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(eq=False)
class _Slot:
    environment: Environment
    plan: EpisodePlan
    rng: np.random.Generator
    observations: list[NDArray[np.generic]]
    tokens: list[NDArray[np.int16]] = field(default_factory=list)
    log_mu: list[NDArray[np.float32]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    terminated: bool = False
    success: bool = False
    earlier_steps: int = 0

    def is_finished(self, max_steps: int) -> bool:
        """Whether the episode is over, by its task or by the time limit."""
        return self.terminated or self.earlier_steps + len(self.rewards) >= max_steps


def goal_plans(suite: Suite, goal_seed: int, count: int, stream: object) -> list[EpisodePlan]:
    """Returns plans over the goals of a goal seed, cycling through them; each has its own draws."""
    return [
        EpisodePlan((goal_seed, i % suite.num_goals), seed_for("episode", stream, goal_seed, i)) for i in range(count)
    ]


def policy_actor(policy: Policy, device: torch.device) -> Actor:
    """Returns the actor that evaluates a policy without gradients."""
    alone = policy.lone_actor() if device.type == "cpu" and isinstance(policy, LoneActingPolicy) else None

    def act(observations: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if alone is not None and len(observations) == 1:
            logits_AK, value = alone(observations[0])
            return logits_AK[None], np.array([value], np.float32)
        with torch.inference_mode():
            output = policy(torch.from_numpy(observations).to(device))
        return output.logits_BAK.cpu().numpy(), output.value_B.cpu().numpy()

    return act


def rollout(
    actor: Actor, environments: Sequence[Environment], plans: Iterable[EpisodePlan], acting: Acting, labels: Labels
) -> list[Episode]:
    """Runs every plan to its end and returns the episodes in the order of the plans."""
    waiting = list(enumerate(plans))[::-1]
    free = list(environments)
    active: dict[int, _Slot] = {}
    done: dict[int, Episode] = {}
    while waiting or active:
        while waiting and free:
            index, plan = waiting.pop()
            active[index] = _start(free.pop(), plan)
        _step_all(list(active.values()), actor, acting)
        finished = {i: slot for i, slot in active.items() if slot.is_finished(acting.max_steps)}
        if not finished:
            continue
        bootstrap = _bootstrap_values(list(finished.values()), actor)
        for (index, slot), value in zip(finished.items(), bootstrap, strict=True):
            done[index] = _to_episode(slot, value, labels, f"{labels.prefix}-{index:05d}")
            free.append(slot.environment)
            del active[index]
    return [done[index] for index in sorted(done)]


class Collector:
    """Acts on without end: an episode that is not over when a call ends goes on in the next.

    Args:
        plans: Of the episodes to come, without end.
        labels: behaviour_version and prefix are those of the first call's policy and of all episode ids.
    """

    def __init__(
        self, environments: Sequence[Environment], plans: Iterator[EpisodePlan], acting: Acting, labels: Labels
    ) -> None:
        self._acting, self._labels = acting, labels
        self._plans = enumerate(plans)
        self._numbers = [0] * len(environments)
        self._slots = [self._next(i, environment) for i, environment in enumerate(environments)]

    def _next(self, place: int, environment: Environment) -> _Slot:
        self._numbers[place], plan = next(self._plans)
        return _start(environment, plan)

    def collect(self, actor: Actor, steps: int, behaviour_version: int) -> list[Episode]:
        """Makes `steps` decisions in each environment and returns the pieces of episodes that they are.

        A piece that ends before its episode does counts as truncated, so its last value is bootstrapped.
        """
        labels = self._labels._replace(behaviour_version=behaviour_version)
        pieces = []
        for step in range(1, steps + 1):
            _step_all(self._slots, actor, self._acting)
            for i, slot in enumerate(self._slots):
                is_over = slot.is_finished(self._acting.max_steps)
                if not is_over and step < steps:
                    continue
                bootstrap = _bootstrap_values([slot], actor)[0]
                name = f"{labels.prefix}-{self._numbers[i]:06d}-{slot.earlier_steps:04d}"
                pieces.append(_to_episode(slot, bootstrap, labels, name))
                self._slots[i] = self._next(i, slot.environment) if is_over else _continued(slot)
        return pieces


def _continued(slot: _Slot) -> _Slot:
    """Returns the rest of an episode that is not over."""
    done = slot.earlier_steps + len(slot.rewards)
    return _Slot(slot.environment, slot.plan, slot.rng, [slot.observations[-1]], earlier_steps=done)


def _start(environment: Environment, plan: EpisodePlan) -> _Slot:
    rng = np.random.default_rng(plan.seed)
    return _Slot(environment, plan, rng, [environment.reset(plan.goal, rng)])


def _step_all(slots: list[_Slot], actor: Actor, acting: Acting) -> None:
    logits_nAK, values_n = actor(np.stack([slot.observations[-1] for slot in slots]))
    log_p_nAK = logits_nAK - _log_sum_exp(logits_nAK)
    if acting.greedy:
        tokens_nA = log_p_nAK.argmax(-1)
    else:
        draws_nA = np.stack([slot.rng.random(log_p_nAK.shape[1]) for slot in slots])
        tokens_nA = _inverse_cdf(log_p_nAK, draws_nA)
    log_mu_nA = np.take_along_axis(log_p_nAK, tokens_nA[..., None], -1)[..., 0]
    for i, slot in enumerate(slots):
        tokens = tokens_nA[i].astype(np.int16)
        transition = slot.environment.step(tokens)
        slot.tokens.append(tokens)
        slot.log_mu.append(log_mu_nA[i])
        if acting.keep_logits:
            slot.logits.append(logits_nAK[i])
        slot.values.append(float(values_n[i]))
        slot.rewards.append(transition.reward)
        slot.observations.append(transition.observation)
        slot.terminated, slot.success = transition.terminated, transition.success


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    top = logits.max(-1, keepdims=True)
    return np.asarray(top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))


def _inverse_cdf(log_p_nAK: NDArray[np.float32], draws_nA: NDArray[np.float64]) -> NDArray[np.int64]:
    cdf = np.exp(log_p_nAK.astype(np.float64)).cumsum(-1)
    return np.asarray((draws_nA[..., None] * cdf[..., -1:] >= cdf).sum(-1))


def _bootstrap_values(slots: list[_Slot], actor: Actor) -> NDArray[np.float32]:
    """Returns the value of each slot's last observation, 0 where the episode terminated."""
    _, values = actor(np.stack([slot.observations[-1] for slot in slots]))
    return np.where([slot.terminated for slot in slots], np.float32(0), values)


def _to_episode(slot: _Slot, bootstrap_value: float, labels: Labels, episode_id: str) -> Episode:
    return Episode(
        observations=np.stack(slot.observations),
        action_tokens=np.stack(slot.tokens),
        log_mu=np.stack(slot.log_mu).astype(np.float32),
        mu_logits=np.stack(slot.logits).astype(np.float16) if slot.logits else None,
        reward=np.asarray(slot.rewards, np.float32),
        value=np.asarray(slot.values, np.float32),
        terminated=slot.terminated,
        truncated=not slot.terminated,
        bootstrap_value=float(bootstrap_value),
        behaviour_version=labels.behaviour_version,
        task=labels.task,
        instruction=labels.instruction,
        seed=slot.plan.seed,
        success=slot.success,
        simulator=labels.simulator,
        episode_id=episode_id,
    )
