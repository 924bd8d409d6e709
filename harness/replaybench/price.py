"""What a sweep costs on this machine, from a short measurement made here and now."""

import time
from typing import Any

import numpy as np
import torch

from replaybench.baseline import load_baseline
from replaybench.evaluate import NUM_ENVIRONMENTS, World, evaluate, open_world
from replaybench.learner import Learner
from replaybench.lineage import CPU
from replaybench.plan import Arm, Source, SweepSpec, count_runs, lineage_folder
from replaybench.policy import Policy, make_policy
from replaybench.replay import minibatches, pack
from replaybench.rollout import Acting, goal_plans, policy_actor, rollout
from replaybench.seeding import numpy_generator, torch_generator
from replaybench.spec import EvaluateSettings
from replaybench.store.card import FILE_NAME, read_card

# As many as act at once, so that the batch is as wide as in a run.
EPISODES = NUM_ENVIRONMENTS
UPDATES = 5


def price(spec: SweepSpec, found: list[Source], all_arms: list[Arm]) -> list[dict[str, Any]]:
    """Returns the sweep's size and its estimated time in core hours.

    The first dataset's policy is timed on a few updates and a few episodes; the estimate assumes that the other
    datasets cost the same and that no episode ends before max_steps, so it is an upper bound of the acting.
    """
    num_runs = count_runs(spec, all_arms)
    missing = [
        (source.name, lineage)
        for source in found
        for lineage in spec.lineages
        if not (lineage_folder(source.folder, lineage) / FILE_NAME).exists()
    ]
    update_s, step_s = _measure(spec, found[0])
    evaluations = 1 + (spec.train.updates // spec.evaluate.every if spec.evaluate.every else 0)
    evaluations *= 1 + spec.evaluate.greedy
    run_s = spec.train.updates * update_s + evaluations * spec.evaluate.episodes * spec.evaluate.max_steps * step_s
    return [
        {"quantity": "datasets", "value": ", ".join(source.name for source in found)},
        {"quantity": "arms", "value": len(all_arms)},
        {"quantity": "lineages a dataset", "value": len(spec.lineages)},
        {"quantity": "levels", "value": ", ".join(spec.levels)},
        {"quantity": "replay ratios", "value": ", ".join(f"{ratio:g}" for ratio in spec.replay_ratios)},
        {"quantity": "runs", "value": num_runs},
        {"quantity": "lineages to make first", "value": len(missing)},
        {"quantity": "one update, ms (measured here)", "value": 1e3 * update_s},
        {"quantity": "one simulator step with its policy, ms (measured here)", "value": 1e3 * step_s},
        {"quantity": "one run, s (at most)", "value": run_s},
        {"quantity": "all runs, core hours (at most)", "value": num_runs * run_s / 3600},
    ]


def _measure(spec: SweepSpec, source: Source) -> tuple[float, float]:
    """Returns seconds of one update and of one simulator step."""
    torch.set_num_threads(1)
    if source.recipe is not None:
        suite, settings, task = source.recipe.suite, source.recipe.suite_settings, source.recipe.task
        kind, sizes = source.recipe.policy.kind, source.recipe.policy.settings
    else:
        card = read_card(lineage_folder(source.folder, spec.lineages[0]))
        suite, settings, task, kind, sizes = (
            card.suite,
            card.suite_settings,
            card.task,
            card.policy,
            card.policy_settings,
        )
    world = open_world(suite, settings, task)
    policy = make_policy(kind, world.suite.policy_settings(task) | dict(sizes), torch_generator("price"))
    evaluation = EvaluateSettings(episodes=EPISODES, max_steps=spec.evaluate.max_steps)
    # The first call warms caches up.
    step_s = min(_step_seconds(policy, world, evaluation) for _ in range(2))
    plans = goal_plans(world.suite, 0, EPISODES, "price")
    acting = Acting(max_steps=spec.evaluate.max_steps)
    replay = pack(rollout(policy_actor(policy, CPU), world.environments, plans, acting, world.labels("price")), CPU)
    baseline = load_baseline(spec.reference)
    learner = Learner(policy, baseline, baseline.config(), replay, spec.train)
    learner.refresh_advantages()
    durations = []
    for index in minibatches(replay.num_steps, spec.train.batch_size, UPDATES, numpy_generator("price")):
        started = time.perf_counter()
        learner.policy_step(index)
        durations.append(time.perf_counter() - started)
    return float(np.median(durations)), step_s


def _step_seconds(policy: Policy, world: World, evaluation: EvaluateSettings) -> float:
    started = time.perf_counter()
    steps = evaluate(policy, world, evaluation, CPU, greedy=False).length.sum()
    return float((time.perf_counter() - started) / steps)
