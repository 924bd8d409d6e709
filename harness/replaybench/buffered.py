"""One run of the buffered protocol: the policy collects into a buffer and learns from it, again and again.

Staleness is not set but comes about, from the buffer's capacity, the reuse of its content and the correction itself.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from replaybench.buffer import Buffer
from replaybench.diagnostics import Rows, distance_rows, staleness_rows, step_rows
from replaybench.episode import Episode
from replaybench.evaluate import World, open_world
from replaybench.learner import Learner
from replaybench.policy import Policy, make_policy
from replaybench.rollout import Acting, Collector, EpisodePlan, policy_actor
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import BufferedSettings, RunSpec
from replaybench.store import Log
from replaybench.train import RunResult, choose_device, load_policy, log_stream, measure, planned_baseline


def train_buffered(spec: RunSpec, log: Log) -> RunResult:
    """Trains a checkpoint of `log` as `spec` says, on what it collects itself, and evaluates it.

    The random streams are named by everything but the baseline: all baselines of a cell collect the same first
    iteration and meet the same goals in the same order.

    Raises:
        NumericalError: The baseline overflowed or the loss stopped being finite.
    """
    assert spec.buffered is not None
    settings, device = spec.buffered, choose_device(spec.train.device)
    world = open_world(log.card.suite, log.card.suite_settings, log.card.task)
    policy, start = (start_policy(settings, spec, log, device) for _ in range(2))
    rows = Rows()
    if spec.level is None:
        measure(spec, policy, world, rows, 0, device)
        return RunResult(rows, policy)
    collected: list[Episode] = []
    for number, (learner, pieces) in enumerate(iterations(spec, log, policy, rows), start=1):
        if settings.keep_log:
            collected += pieces
        done = learner.num_updates
        is_last = number == settings.iterations
        if is_last or (spec.evaluate.every and crosses(done, settings.policy_updates, spec.evaluate.every)):
            rows.add(done, "env_steps", number * settings.collect_steps)
            measure(spec, policy, world, rows, done, device)
    steps = settings.iterations * settings.collect_steps
    rows.add(done, "replay_steps", steps)
    for name, updates in (("realised", settings.policy_updates), ("value", settings.value_updates)):
        rows.add(done, f"replay_ratio_{name}", settings.iterations * updates * spec.train.batch_size / steps)
    distance_rows(rows, done, policy, start, learner.replay)
    return RunResult(rows, policy, collected)


def iterations(spec: RunSpec, log: Log, policy: Policy, rows: Rows) -> Iterator[tuple[Learner, list[Episode]]]:
    """Collects and learns; yields the learner and what was collected after each iteration."""
    settings, device = spec.buffered, choose_device(spec.train.device)
    assert settings is not None
    buffer, collector = Buffer(settings.capacity), new_collector(spec, log)
    actor, batch_rng = policy_actor(policy, device), numpy_generator(log_stream(spec), "minibatches")
    learner: Learner | None = None
    for _ in range(settings.iterations):
        version = learner.num_updates if learner else 0
        pieces = collector.collect(actor, settings.collect_steps // settings.environments, version)
        buffer.add(pieces)
        if learner is None:
            learner = new_learner(spec, policy, buffer, device)
        else:
            learner.replay = buffer.replay(device)
        learn(spec, learner, rows, batch_rng)
        yield learner, pieces


def learn(spec: RunSpec, learner: Learner, rows: Rows, rng: np.random.Generator) -> None:
    """Makes the updates of one iteration, writing diagnostics as it goes."""
    settings = spec.buffered
    assert settings is not None
    total = settings.iterations * settings.policy_updates
    used = made = 0
    for index in learner.batches(settings.sample_rounds, rng):
        features: torch.Tensor | None = None
        for reuse in range(settings.reuse):
            rows.learning.count += len(index)
            if reuse % settings.actor_every:
                with rows.learning.running():
                    features = learner.value_features(index) if features is None else features
                    learner.value_step(index, features)
                continue
            if settings.rate_decay == "cosine":
                learner.scale_rates(0.5 * (1 + math.cos(math.pi * learner.num_updates / total)))
            lag_updates = learner.lags(index)
            with rows.learning.running():
                learner.refresh_if_due(made, used, len(index))
                step = learner.policy_step(index, 1 / math.sqrt(reuse + 1))
                features = None
            made, used = made + 1, used + len(index)
            if learner.num_updates % spec.train.log_every == 1 or spec.train.log_every == 1:
                staleness_rows(rows, learner.num_updates, lag_updates)
                step_rows(rows, learner.num_updates, step, lag_updates)


def crosses(done: int, step: int, every: int) -> bool:
    """Returns whether the last `step` of `done` updates reached or passed a multiple of `every`."""
    return done // every > (done - step) // every


def start_policy(settings: BufferedSettings, spec: RunSpec, log: Log, device: torch.device) -> Policy:
    """Returns the policy that a run starts from."""
    if settings.start == "start_policy":
        return load_policy(log, log.card.start_checkpoint, device)
    oldest = min(log.card.checkpoints, key=lambda checkpoint: checkpoint.version)
    policy = load_policy(log, log.card.warm_start_checkpoint or oldest.name, device)
    if settings.start == "scratch":
        # New weights; what standardises observations stays that of the demonstrations.
        generator = torch_generator(spec.dataset, spec.lineage, spec.seed, "initialise")
        fresh = make_policy(log.card.policy, log.card.policy_settings, generator)
        trained = [*policy.policy_parameters(), *policy.value_parameters()]
        new = [*fresh.policy_parameters(), *fresh.value_parameters()]
        with torch.no_grad():
            for old, drawn in zip(trained, new, strict=True):
                old.copy_(drawn)
    return policy


def new_collector(spec: RunSpec, log: Log) -> Collector:
    """Returns what acts in environments of its own, on goals that no evaluation uses."""
    settings = spec.buffered
    assert settings is not None
    world = open_world(log.card.suite, log.card.suite_settings, log.card.task, collectors=settings.environments)
    rng = numpy_generator(log_stream(spec), "collect")
    needs_logits = (
        settings.keep_log or spec.train.kl_coefficient > 0 or "mu_logits" in planned_baseline(spec).declaration.needs
    )
    acting = Acting(max_steps=spec.evaluate.max_steps, keep_logits=needs_logits)
    plans = training_plans(world, settings.first_goal_seed + spec.lineage, rng)
    return Collector(world.environments, plans, acting, world.labels("collected"))


def training_plans(world: World, goal_seed: int, rng: np.random.Generator) -> Iterator[EpisodePlan]:
    """Yields episodes on goals drawn at random, without end."""
    while True:
        yield EpisodePlan((goal_seed, int(rng.integers(world.suite.num_goals))), int(rng.integers(2**63)))


def new_learner(spec: RunSpec, policy: Policy, buffer: Buffer, device: torch.device) -> Learner:
    """Returns the learner on what is in the buffer, its value head warmed up there."""
    baseline = planned_baseline(spec)
    learner = Learner(policy, baseline, baseline.config(spec.config), buffer.replay(device), spec.train)
    learner.warm_up(numpy_generator(log_stream(spec), "minibatches", "value"))
    return learner
