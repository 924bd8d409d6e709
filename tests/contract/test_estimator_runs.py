"""The laws that every advantage estimator of the table obeys in a whole run on a small log of the slippery grid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaybench.estimators import ESTIMATORS
from replaybench.evaluate import open_world
from replaybench.paths import ROOT
from replaybench.plan import SweepSpec, check, runs, sources
from replaybench.policy.tabular import TabularQPolicy
from replaybench.rollout import Acting, goal_plans, policy_actor, rollout
from replaybench.seeding import torch_generator
from replaybench.spec import AdvantageSettings, RunSpec
from replaybench.store import Card, LevelCard, Log, ShardWriter, open_log
from replaybench.suites import gridworld
from replaybench.train import RunResult, load_start_policy, train

each_estimator = pytest.mark.parametrize("name", ESTIMATORS)
TASK = "gridworld-5x5"
LEVELS = {"fresh": 40, "stale": 0}


def half_expert() -> TabularQPolicy:
    """A walker that acts optimally half the time, so that a log of it has successes and failures."""
    world = open_world("gridworld", {}, TASK)
    policy = TabularQPolicy(**world.suite.policy_settings(TASK))
    best = gridworld.optimal_policy(gridworld.slippery())
    with torch.no_grad():
        policy.logits.copy_(torch.from_numpy(np.log(0.5 * best + 0.5 / best.shape[1]))[:, None])
        policy.q.normal_(0.0, 0.1, generator=torch_generator("values"))
    return policy


@pytest.fixture(scope="module")
def grid_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """A small log whose start policy has action values, so that every estimator can run on it."""
    folder = tmp_path_factory.mktemp("data") / "toy-q" / "lineage-000"
    world, older, start = open_world("gridworld", {}, TASK), half_expert(), half_expert()
    with torch.no_grad():
        start.logits.add_(0.5 * torch.randn(start.logits.shape, generator=torch_generator("start")))
    card = Card(
        dataset="toy-q",
        lineage=0,
        suite="gridworld",
        suite_settings={},
        task=TASK,
        policy="tabular_q",
        policy_settings=start.settings,
        start_checkpoint="start",
        recipe_sha256="",
        licence="CC0-1.0",
        command="none",
        versions={"simulator": world.suite.simulator},
        levels={name: LevelCard(lag_updates=(40 - version, 40 - version)) for name, version in LEVELS.items()},
    )
    with ShardWriter(folder, card=card, formats=("arrow",)) as writer:
        writer.add_checkpoint("start", 40, start.state_dict())
        for (level, version), policy in zip(LEVELS.items(), (start, older), strict=True):
            plans = goal_plans(world.suite, 10, 60, level)
            actor = policy_actor(policy, torch.device("cpu"))
            labels = world.labels(level, version)
            for episode in rollout(actor, world.environments, plans, Acting(max_steps=20), labels):
                writer.add(level, episode)
    return open_log(folder)


def test_the_log_has_something_to_learn(grid_log: Log) -> None:
    """It holds successes, failures and cut episodes; with equal returns the laws below would say little."""
    episodes = grid_log.episodes("stale")
    assert {float(episode.reward.sum()) for episode in episodes} == {0.0, 1.0}
    assert {episode.truncated for episode in episodes} == {False, True}


@pytest.fixture
def run_with(grid_log: Log, toy_sweep: Callable[..., SweepSpec]) -> Callable[..., RunResult]:
    """Returns a function that plans and makes one run on the stale level with this estimator."""

    def planned(name: str, **advantage: Any) -> RunSpec:
        settings = AdvantageSettings.model_validate({"estimator": name, "normalise": "none"} | advantage)
        spec = toy_sweep(
            datasets=(str(Path(grid_log.folder).parent),),
            lineages=(0,),
            baselines=("zero", "no_correction"),
            reference="no_correction",
        )
        spec = spec.model_copy(update={"train": spec.train.model_copy(update={"advantage": settings})})
        found = sources(spec, Path("unused"))
        everything = runs(spec, found, check(spec, found))
        return next(run for run in everything if (run.level, run.replay_ratio) == ("stale", 1.0))

    return lambda name, **advantage: train(planned(name, **advantage), grid_log)


@each_estimator
def test_a_run_ends_with_finite_numbers_and_another_policy(
    name: str, run_with: Callable[..., RunResult], grid_log: Log
) -> None:
    """From the plan to the evaluation: eight updates move the policy and leave no number out of range."""
    result = run_with(name)
    assert np.isfinite(result.rows.value).all()
    start = load_start_policy(grid_log, torch.device("cpu")).state_dict()
    trained = result.policy.state_dict()
    for part in ("logits", "q"):
        assert torch.isfinite(trained[part]).all()
        assert not torch.equal(trained[part], start[part])


@each_estimator
def test_a_run_is_repeatable(name: str, run_with: Callable[..., RunResult]) -> None:
    """The same run gives the same weights, bit by bit."""
    first, second = run_with(name).policy.state_dict(), run_with(name).policy.state_dict()
    assert all(torch.equal(first[part], second[part]) for part in first)


@pytest.mark.parametrize("name", ["gae", "gae_stored", "grpo", "retrace"])
@pytest.mark.parametrize("every", ["batch", "epoch"])
def test_every_rule_of_recomputation_runs(name: str, every: str, run_with: Callable[..., RunResult]) -> None:
    """Before each batch and at the start of each pass, for estimators of values, of groups and of action values."""
    assert np.isfinite(run_with(name, recompute_every=every).rows.value).all()


def test_estimators_differ_in_what_they_learn(run_with: Callable[..., RunResult]) -> None:
    """No two rows of the table are one estimator by two names, but for the two names of the V-trace policy gradient.

    With a leak in V-trace, and under a method without a ratio, where both of these are the same.
    """
    learnt = {name: run_with(name, alpha=0.5).policy.state_dict()["logits"] for name in ESTIMATORS}
    twins = {
        frozenset((one, other))
        for one in learnt
        for other in learnt
        if one != other and torch.equal(learnt[one], learnt[other])
    }
    assert twins == {frozenset(("vtrace_rho_pg", "vtrace_double_correction"))}


@each_estimator
def test_the_protocol_describes_the_estimator(name: str) -> None:
    """The table in docs/protocol.md has a row for each name."""
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text
