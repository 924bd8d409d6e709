"""One run: a start policy, a log of one freshness level, one baseline; trained and measured, top to bottom."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from replaybench.baseline import Baseline, load_baseline
from replaybench.diagnostics import Rows, distance_rows, outcome_rows, step_rows
from replaybench.episode import Episode
from replaybench.errors import ContractError, DataError
from replaybench.evaluate import World, evaluate, open_world
from replaybench.learner import Learner, lags
from replaybench.policy import Policy, make_policy
from replaybench.replay import Replay, pack, take_steps
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import RunSpec
from replaybench.store import Log


class RunResult(NamedTuple):
    """Rows of measurements, the trained policy, and what was collected, if it is to be kept."""

    rows: Rows
    policy: Policy
    collected: Sequence[Episode] = ()


def train(spec: RunSpec, log: Log) -> RunResult:
    """Trains the start policy of `log` as `spec` says and evaluates it.

    Every baseline of a cell sees the same episodes in the same order, because the random streams are named by
    everything but the baseline.

    Raises:
        NumericalError: The baseline overflowed or the loss stopped being finite.
        DataError: The log is too short for the replay ratio.
    """
    device = choose_device(spec.train.device)
    world = open_world(log.card.suite, log.card.suite_settings, log.card.task)
    start, policy = load_start_policy(log, device), load_start_policy(log, device)
    rows = Rows()
    if spec.level is not None:
        replay = load_replay(spec, log, device)
        rows.add(0, "replay_steps", replay.num_steps)
        used = learn(spec, log, policy, replay, world, rows)
        rows.add(spec.train.updates, "replay_ratio_realised", used / replay.num_steps)
        distance_rows(rows, spec.train.updates, policy, start, replay)
    measure(spec, policy, world, rows, spec.train.updates if spec.level is not None else 0, device)
    return RunResult(rows, policy)


def learn(spec: RunSpec, log: Log, policy: Policy, replay: Replay, world: World, rows: Rows) -> int:
    """Warms up the value head, then makes the updates, writing diagnostics as it goes; returns the decisions used."""
    assert spec.level is not None
    settings, device = spec.train, replay.log_mu.device
    baseline = planned_baseline(spec)
    start_version = log.card.version_of(log.card.start_checkpoint)
    learner = Learner(policy, baseline, baseline.config(spec.config), replay, settings, start_version)
    # Ages as the levels count them, to the start policy; a sibling's log has none.
    has_lag = log.card.levels[spec.level].lag_updates is not None
    lag_N = lags(replay, start_version) if has_lag else None
    stream = (log_stream(spec), "minibatches")
    learner.warm_up(numpy_generator(*stream, "value"))
    used = 0
    for update, index in enumerate(learner.batches(settings.updates, numpy_generator(*stream, "policy"))):
        with rows.learning.running():
            learner.refresh_if_due(update, used, len(index))
            step = learner.policy_step(index.to(device))
        used += len(index)
        if update % settings.log_every == 0 or update == settings.updates - 1:
            step_rows(rows, update + 1, step, None if lag_N is None else lag_N[index])
        if spec.evaluate.every and (update + 1) % spec.evaluate.every == 0 and update + 1 < settings.updates:
            measure(spec, policy, world, rows, update + 1, device)
    rows.learning.count = used
    return used


def measure(spec: RunSpec, policy: Policy, world: World, rows: Rows, update: int, device: torch.device) -> None:
    """Evaluates with sampled actions, and greedily if the spec asks for it."""
    with rows.acting.running():
        outcome = evaluate(policy, world, spec.evaluate, device, greedy=False)
    rows.acting.count += int(outcome.length.sum())
    outcome_rows(rows, update, "", outcome)
    if spec.evaluate.greedy:
        outcome_rows(rows, update, "greedy_", evaluate(policy, world, spec.evaluate, device, greedy=True))


def planned_baseline(spec: RunSpec) -> Baseline:
    """Returns the run's baseline.

    Raises:
        ContractError: Its file is another one now.
    """
    baseline = load_baseline(spec.baseline_path or spec.baseline)
    if baseline.digest != spec.baseline_sha256:
        raise ContractError(f"Baseline '{spec.baseline}' changed on disk while the sweep ran. Start a new sweep.")
    return baseline


def log_stream(spec: RunSpec) -> str:
    """Returns the name of the random stream that all baselines of a cell share."""
    return f"{spec.dataset}/{spec.lineage}/{spec.level}/{spec.replay_ratio}/{spec.seed}"


def load_replay(spec: RunSpec, log: Log, device: torch.device) -> Replay:
    """Returns exactly updates * batch_size / replay_ratio logged decisions.

    Which episodes they are is drawn anew for each seed, the same for every baseline.
    """
    assert spec.level is not None and spec.replay_ratio is not None
    declared = load_baseline(spec.baseline_path or spec.baseline).declaration.needs
    needs_logits = spec.train.kl_coefficient > 0 or "mu_logits" in declared
    episodes = log.episodes(spec.level, spec.data_format, with_mu_logits=needs_logits)
    wanted = steps_for(spec.train.updates, spec.train.batch_size, spec.replay_ratio)
    order = numpy_generator(log_stream(spec), "episodes").permutation(len(episodes))
    try:
        taken = take_steps([episodes[i] for i in order], wanted)
    except DataError as error:
        raise DataError(f"dataset '{spec.dataset}', lineage {spec.lineage}, level '{spec.level}': {error}") from error
    return pack(taken, device)


def steps_for(updates: int, batch_size: int, replay_ratio: float) -> int:
    """Returns the logged steps that make the replay ratio updates * batch_size / steps what is asked for."""
    return max(1, round(updates * batch_size / replay_ratio))


def load_start_policy(log: Log, device: torch.device) -> Policy:
    """Returns the newest checkpoint of a log folder as a policy."""
    return load_policy(log, log.card.start_checkpoint, device)


def load_policy(log: Log, checkpoint: str, device: torch.device) -> Policy:
    """Returns a checkpoint of a log folder as a policy."""
    card = log.card
    policy = make_policy(card.policy, card.policy_settings, torch_generator("overwritten by the checkpoint"))
    policy.load_state_dict(log.checkpoint(checkpoint))
    policy.to(device)
    return policy


def choose_device(name: str) -> torch.device:
    """Returns the device of a spec: `auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
