"""What a sweep costs: on this machine, from a short measurement, or by arithmetic where the policy is too large."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from replaybench.baseline import load_baseline
from replaybench.evaluate import NUM_ENVIRONMENTS, World, evaluate, open_world
from replaybench.learner import Learner
from replaybench.lineage import CPU
from replaybench.plan import Arm, Source, SweepSpec, count_runs, lineage_folder
from replaybench.policy import Policy, Workload, make_policy, priced
from replaybench.replay import minibatches, pack
from replaybench.rollout import Acting, goal_plans, policy_actor, rollout
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import BufferedSettings, EvaluateSettings
from replaybench.store import has_card, open_log
from replaybench.suites import make_suite
from replaybench.train import steps_for

# As many as act at once, so that the batch is as wide as in a run.
EPISODES = NUM_ENVIRONMENTS
UPDATES = 5


class Costs(NamedTuple):
    """Seconds of one update, of one of the value head alone, and of one simulator step when many or few act at once."""

    update_s: float
    value_s: float
    step_s: float
    collect_s: float


def price(spec: SweepSpec, found: list[Source], all_arms: list[Arm]) -> list[dict[str, Any]]:
    """Returns the sweep's size and its estimated cost.

    The first dataset's policy is timed on a few updates and a few episodes, or priced by arithmetic where it is too
    large for that; the estimate assumes that the other datasets cost the same and that no episode ends before
    max_steps, so it is an upper bound of the acting.
    """
    num_runs = count_runs(spec, all_arms)
    missing = [
        (source.name, lineage)
        for source in found
        for lineage in spec.lineages
        if not has_card(lineage_folder(source.folder, lineage))
    ]
    counts: list[dict[str, Any]] = [
        {"quantity": "datasets", "value": ", ".join(source.name for source in found)},
        {"quantity": "arms", "value": len(all_arms)},
        {"quantity": "lineages a dataset", "value": len(spec.lineages)},
        {"quantity": "levels", "value": ", ".join(spec.level_names())},
        {"quantity": "replay ratios", "value": ", ".join(f"{ratio:g}" for ratio in spec.ratios())},
        {"quantity": "runs", "value": num_runs},
        {"quantity": "lineages to make first", "value": len(missing)},
    ]
    setting = _setting(spec, found[0])
    lineage = _lineage_workload(found[0], len(missing))
    arithmetic = priced(setting.kind, setting.policy_settings, _run_workload(spec, num_runs), lineage)
    if arithmetic is not None and spec.buffered is None:
        return [row | {"arithmetic": ""} for row in counts] + arithmetic
    costs = _measure(spec, setting)
    if spec.buffered:
        run_s = float(np.mean([_buffered_seconds(spec, spec.regime(name), costs) for name in spec.regimes]))
    else:
        run_s = spec.train.updates * costs.update_s + _evaluation_seconds(spec, spec.train.updates, costs)
    return [
        *counts,
        {"quantity": "one update, ms (measured here)", "value": 1e3 * costs.update_s},
        {"quantity": "one update of the value head alone, ms (measured here)", "value": 1e3 * costs.value_s},
        {"quantity": "one simulator step with its policy, ms (measured here)", "value": 1e3 * costs.step_s},
        {"quantity": "one run, s (at most)", "value": run_s},
        {"quantity": "all runs, core hours (at most)", "value": num_runs * run_s / 3600},
    ]


class _Setting(NamedTuple):
    """Where the policy acts, and its kind and sizes."""

    suite: str
    suite_settings: dict[str, Any]
    task: str
    kind: str
    policy_settings: dict[str, Any]


def _setting(spec: SweepSpec, source: Source) -> _Setting:
    if source.recipe is None:
        card = open_log(lineage_folder(source.folder, spec.lineages[0])).card
        return _Setting(card.suite, card.suite_settings, card.task, card.policy, card.policy_settings)
    recipe = source.recipe
    sizes = make_suite(recipe.suite, recipe.suite_settings).policy_settings(recipe.task)
    return _Setting(
        recipe.suite, recipe.suite_settings, recipe.task, recipe.policy.kind, sizes | recipe.policy.settings
    )


def _run_workload(spec: SweepSpec, num_runs: int) -> Workload:
    """Returns what one run asks of its policy at the mean of the cells."""
    train, cells = spec.train, spec.cells()
    updates = round(float(np.mean([cell.updates for cell in cells])))
    wanted = [steps_for(cell.updates, train.batch_size, cell.replay_ratio) for cell in cells]
    logged = round(float(np.mean(wanted)))
    every = train.advantage.recompute_every
    refreshes = max(spec.ratios()) if every == "epoch" else (updates + train.value_warmup_updates) / every
    evaluations = 1 + (updates // spec.evaluate.every if spec.evaluate.every else 0)
    return Workload(
        what="run",
        runs=num_runs,
        updates=updates,
        batch_size=train.batch_size,
        # At the end the distances to the log and to the start policy take one pass of each policy.
        value_forwards=train.value_warmup_updates * train.batch_size + round(refreshes * logged) + 2 * logged,
        decisions=evaluations * (1 + spec.evaluate.greedy) * spec.evaluate.episodes * spec.evaluate.max_steps,
        logged_observations=logged,
    )


def _lineage_workload(source: Source, count: int) -> Workload | None:
    """Returns what making a log asks of its policy: RL up to the first check of its stop rule, and the logs."""
    if source.recipe is None or source.recipe.reinforcement is None:
        return None
    recipe, rules = source.recipe, source.recipe.reinforcement
    collected = rules.episodes_per_iteration * recipe.max_steps
    iterations = -(-rules.min_updates * rules.batch_size // collected)
    logged_episodes = sum(level.episodes for level in recipe.levels.values() if not level.mixture_of)
    checks = 1 if recipe.warm_start else 2
    return Workload(
        what="lineage",
        runs=count,
        updates=rules.min_updates,
        batch_size=rules.batch_size,
        # Each pass over the values estimates advantages and then fits, five times as often in the first iteration; one
        # more estimate comes before the policy. Every logged decision is measured twice.
        value_forwards=((iterations + 4) * 2 * rules.value_passes + iterations) * collected
        + 2 * logged_episodes * recipe.max_steps,
        decisions=iterations * collected + (checks * rules.check_episodes + logged_episodes) * recipe.max_steps,
        logged_observations=collected,
    )


def _evaluation_seconds(spec: SweepSpec, updates: int, costs: Costs) -> float:
    evaluations = 1 + (updates // spec.evaluate.every if spec.evaluate.every else 0)
    return evaluations * (1 + spec.evaluate.greedy) * spec.evaluate.episodes * spec.evaluate.max_steps * costs.step_s


def _buffered_seconds(spec: SweepSpec, settings: BufferedSettings, costs: Costs) -> float:
    value_only = settings.value_updates - settings.policy_updates
    learning = settings.policy_updates * costs.update_s + value_only * costs.value_s
    iteration = learning + settings.collect_steps * costs.collect_s
    updates = settings.iterations * settings.policy_updates
    return settings.iterations * iteration + _evaluation_seconds(spec, updates, costs)


def _measure(spec: SweepSpec, setting: _Setting) -> Costs:
    """Times a few of each."""
    torch.set_num_threads(1)
    world = open_world(setting.suite, setting.suite_settings, setting.task)
    policy = make_policy(setting.kind, setting.policy_settings, torch_generator("price"))
    evaluation = EvaluateSettings(episodes=EPISODES, max_steps=spec.evaluate.max_steps)
    # The first call warms caches up.
    step_s = min(_step_seconds(policy, world, evaluation) for _ in range(2))
    plans = goal_plans(world.suite, 0, EPISODES, "price")
    acting = Acting(max_steps=spec.evaluate.max_steps)
    replay = pack(rollout(policy_actor(policy, CPU), world.environments, plans, acting, world.labels("price")), CPU)
    baseline = load_baseline(spec.reference)
    learner = Learner(policy, baseline, baseline.config(), replay, spec.train)
    learner.refresh_advantages()
    batches = list(minibatches(replay.num_steps, spec.train.batch_size, UPDATES, numpy_generator("price")))
    update_s, value_s = (_median_seconds(step, batches) for step in (learner.policy_step, learner.value_step))
    collect_s = step_s
    if spec.buffered:
        few = open_world(setting.suite, setting.suite_settings, setting.task, collectors=spec.buffered.environments)
        collect_s = min(_step_seconds(policy, few, evaluation) for _ in range(2))
    return Costs(update_s, value_s, step_s, collect_s)


def _median_seconds(step: Callable[[Tensor], object], batches: list[Tensor]) -> float:
    durations = []
    for index in batches:
        started = time.perf_counter()
        step(index)
        durations.append(time.perf_counter() - started)
    return float(np.median(durations))


def _step_seconds(policy: Policy, world: World, evaluation: EvaluateSettings) -> float:
    started = time.perf_counter()
    steps = evaluate(policy, world, evaluation, CPU, greedy=False).length.sum()
    return float((time.perf_counter() - started) / steps)
