"""Defects that were found in public trainers' off-policy code: each is caught here, or by a test that CAUGHT names."""

import ast
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaybench.baseline import baseline_paths, load_baseline
from replaybench.errors import ConfigError, ContractError
from replaybench.estimators import ESTIMATORS, Columns, Parameters, find_estimator
from replaybench.learner import Learner, estimate_advantages, predict_values
from replaybench.maths.advantages import dr_grpo, vtrace
from replaybench.plan import SweepSpec, check, runs, sources
from replaybench.replay import Replay
from replaybench.spec import AdvantageSettings, TrainSettings
from replaybench.store import Log, open_log
from replaybench.train import load_replay, load_start_policy

CPU = torch.device("cpu")
TESTS = Path(__file__).parents[1]
# Defect -> file and test that would fail. Those of the printed table fail in the rows of the method named.
CAUGHT = {
    "ratio and Gaussian weight multiplied, inf * 0 = NaN": (
        "golden/test_coefficients.py",
        "test_gaussian_weight_stays_exact_where_the_ratio_overflows",
    ),
    "ratio clamped inside the weight only, so that a method called bounded is not": (
        "contract/test_baselines.py",
        "test_boundedness_is_as_declared",
    ),
    "the same, seen at the weight's peak": (
        "golden/test_coefficients.py",
        "test_gaussian_weight_peaks_at_sigma_squared",
    ),
    "cispo with a clamp that carries the gradient, so none outside the band": (
        "golden/test_coefficients.py",
        "test_coefficient_equals_the_printed_table",
    ),
    "icepop's band on 1 / rho where its setting reads as one on rho": (
        "golden/test_coefficients.py",
        "test_coefficient_equals_the_printed_table",
    ),
    "cispo with PPO's bounds, or with an absolute bound read as a relative one": (
        "golden/test_coefficients.py",
        "test_coefficient_equals_the_printed_table",
    ),
    "tis truncated at 1 by default": ("golden/test_coefficients.py", "test_coefficient_equals_the_printed_table"),
    "the dual clip's ceiling tied to the band": (
        "golden/test_coefficients.py",
        "test_dual_clip_ceiling_is_an_absolute_ratio",
    ),
    "gspo with PPO's bounds": ("golden/test_beyond_the_item.py", "test_gspos_default_band_is_narrow"),
    "vespo with the defaults of its authors' docstring": (
        "golden/test_beyond_the_item.py",
        "test_vespo_equals_the_printed_table",
    ),
    "m2po over all items, or one of two other algorithms of its name": (
        "golden/test_coefficients.py",
        "test_second_moment_equals_a_slow_version",
    ),
    "m2po divided by the items that it kept": (
        "golden/test_coefficients.py",
        "test_second_moment_drops_the_largest_harmful_items_and_keeps_the_denominator",
    ),
    "unbounded methods under a hidden clamp of the log-ratio": (
        "golden/test_coefficients.py",
        "test_no_hidden_clamp_zeroes_the_gradient_of_stale_items",
    ),
    "an overflow that trains on": ("unit/test_learner.py", "test_numbers_out_of_range_raise_before_the_weights_change"),
    "importance weights on top of a surrogate's own ratio": (
        "unit/test_estimator_axis.py",
        "test_two_policy_ratios_are_possible_by_name_only",
    ),
    "the behaviour policy's value at a truncation beside recomputed ones": (
        "unit/test_learner.py",
        "test_recomputed_advantages_use_the_current_values_also_after_a_truncation",
    ),
    "versions or tasks mixed in a group": (
        "unit/test_estimator_axis.py",
        "test_episodes_are_compared_within_task_and_behaviour_version",
    ),
    "a method that sets its own scale, scaled again by the batch": (
        "unit/test_estimator_axis.py",
        "test_advantages_are_scaled_once",
    ),
}


@pytest.fixture
def log(toy_data: Path) -> Log:
    return open_log(toy_data / "toy" / "lineage-000")


@pytest.fixture
def replay(log: Log, toy_sweep: Callable[..., SweepSpec], toy_data: Path) -> Replay:
    """The decisions that a run on the stale level learns from, with some rewards, of which the toy log has none."""
    spec = toy_sweep()
    found = sources(spec, toy_data)
    run = next(run for run in runs(spec, found, check(spec, found)) if run.level == "stale" and run.baseline != "zero")
    packed = load_replay(run, log, CPU)
    return replace(packed, reward=np.random.default_rng(0).normal(size=packed.num_steps))


def make_learner(log: Log, replay: Replay, baseline: str, **settings: Any) -> Learner:
    loaded = load_baseline(baseline)
    values = {"max_grad_norm": 1e9, "batch_size": 32} | settings
    learner = Learner(
        load_start_policy(log, CPU), loaded, loaded.config(), replay, TrainSettings.model_validate(values), 40
    )
    learner.refresh_advantages()
    return learner


@pytest.mark.parametrize("defect", CAUGHT)
def test_the_test_that_catches_a_defect_exists(defect: str) -> None:
    """A test that is renamed or removed must be missed here."""
    file, name = CAUGHT[defect]
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("name", "arxiv"),
    [("cispo", "2506.13585"), ("topr", "2503.14286"), ("gipo", "2603.03955"), ("sapo", "2511.20347")],
)
def test_a_method_cites_its_own_paper(name: str, arxiv: str) -> None:
    """Defect: a trainer's CISPO cites TOPR's arXiv id. The ids are those of the papers' pages."""
    assert load_baseline(name).declaration.arxiv == arxiv


@pytest.mark.parametrize("name", baseline_paths())
def test_the_documented_default_is_the_default(name: str) -> None:
    """Defect: VESPO's docstring states other defaults than its code. The first number after a name is its default."""
    baseline = load_baseline(name)
    text = ast.get_docstring(ast.parse(baseline.path.read_text(encoding="utf-8"))) or ""
    config = baseline.config()
    for field in fields(baseline.config_type):
        stated = re.search(rf"\b{field.name} = (-?\d+(?:\.\d+)?(?:e-?\d+)?)", text)
        if stated:
            assert float(stated[1]) == getattr(config, field.name), field.name


def test_documented_defaults_are_found_at_all() -> None:
    """The law above reads numbers: the docstring that went wrong elsewhere states all four of its own here."""
    text = load_baseline("vespo").path.read_text(encoding="utf-8")
    assert len(re.findall(r"\b(?:power|rate)_(?:positive|negative) = \d", text)) == 4


def test_what_is_dropped_stays_in_the_denominator(log: Log, replay: Replay) -> None:
    """Defect: rejected items leave the mean, so that the others' gradients grow by N / N_kept.

    A mask by ratio drops the first half, whose log_mu is moved far away. By linearity the gradient is that of the
    others' scores, as they are without the move, divided by all 32 items and not by those that are left.
    """
    index = torch.arange(32)
    learners = [make_learner(log, replay, "icepop", advantage={"normalise": "none"}) for _ in range(2)]
    moved = replay.log_mu.clone()
    moved[:16] -= 40.0
    learners[1].replay = replace(replay, log_mu=moved)
    whole, halved = (learner.policy_step(index).value.score for learner in learners)
    assert not halved[:16].any()
    assert halved[16:].any()
    scores = torch.where(torch.arange(32)[:, None] < 16, 0.0, whole)
    policy = load_start_policy(log, CPU)
    logits = policy(replay.observations[replay.row[index]]).logits_BAK
    log_pi = torch.log_softmax(logits, -1).gather(-1, replay.action_tokens[index].long()[..., None]).squeeze(-1)
    (expected,) = torch.autograd.grad(-(scores * log_pi).sum() / 32, policy.policy_parameters())
    (found,) = learners[1].policy.policy_parameters()
    assert found.grad is not None
    assert found.grad.abs().max() > 1e-4
    torch.testing.assert_close(found.grad, expected, rtol=1e-5, atol=1e-8)


def test_vtrace_bootstraps_from_its_own_trajectory_at_a_truncation() -> None:
    """Defect: at a truncation the next packed trajectory's first value is taken. By hand, on fresh data, gamma = 1/2.

    Two episodes of one step, the first cut at a value of 4: 1 + 4/2 = 3, whatever the second one's value of 1000.
    """
    found = vtrace(
        np.array([1.0, 0.0]),
        np.array([0.0, 1000.0]),
        np.array([4.0, 0.0]),
        np.array([True, True]),
        np.zeros(2),
        gamma=0.5,
    )
    assert found.value_target.tolist() == [3.0, 0.0]
    assert found.advantage.tolist() == [3.0, -1000.0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_estimator_reads_the_next_trajectory(name: str) -> None:
    """The same defect elsewhere: values, ratios and action values of later episodes do not reach a cut one.

    Rewards alone are compared across episodes, so an episode's own group keeps its rewards.
    """

    def columns(other: float) -> Columns:
        return Columns(
            reward=np.array([1.0, 2.0, 0.5, -1.0]),
            value=np.array([0.3, 0.4, other, other]),
            next_value=np.array([0.4, 4.0, other, 0.0]),
            ends=np.array([False, True, False, True]),
            log_ratio=np.array([0.2, -0.3, other, other]),
            log_pi=np.array([-0.5, -0.7, -other, -other]),
            group=np.array([0, 0]),
            action_value=np.array([0.1, 0.6, other, other]),
        )

    p = Parameters(gamma=0.9, lam=0.8, rho_bar=1.0, c_bar=1.0, alpha=0.5)
    found, moved = (find_estimator(name).estimate(columns(other), p).advantage[:2] for other in (0.1, 3.0))
    np.testing.assert_allclose(found, moved, rtol=1e-12)


@pytest.mark.parametrize("name", ["vtrace", "leaky_vtrace"])
def test_the_ratio_is_pi_over_mu(name: str, log: Log, replay: Replay) -> None:
    """Defect: the two log-probabilities are exchanged in V-trace's documentation, so a caller may pass the inverse.

    Where mu found unlikely what pi does (log mu = -50), ratios are truncated at 1: the targets are those of GAE with
    lambda 1. Where mu was certain of it (log mu = 50, for the test), they are 0: the targets are the values.
    """
    policy = load_start_policy(log, CPU)
    unlikely, certain = (
        estimate_advantages(
            policy,
            replace(replay, log_mu=torch.full_like(replay.log_mu, log_mu)),
            AdvantageSettings(estimator=name, lam=1.0),
        ).value_target
        for log_mu in (-50.0, 50.0)
    )
    returns = estimate_advantages(policy, replay, AdvantageSettings(estimator="gae", lam=1.0)).value_target
    np.testing.assert_allclose(unlikely, returns, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(certain, predict_values(policy, replay)[replay.row.numpy()], rtol=1e-9, atol=1e-12)


def test_group_advantages_survive_the_way_through_the_log(log: Log, replay: Replay) -> None:
    """Defect: a buffer of shape (B,) against (G, N) made every advantage a constant, and tests fed made-up shapes.

    Here they go from a log on disk through the replay to the items of a batch: they differ between episodes, agree
    within one, and sum to nothing over the episodes of the group.
    """
    settings = {"estimator": "dr_grpo", "normalise": "none"}
    learner = make_learner(log, replay, "ppo_clip", advantage=settings)
    index = torch.arange(replay.num_steps)
    advantage = learner.policy_step(index).items.advantage[:, 0]
    first = np.append(0, np.flatnonzero(replay.ends)[:-1] + 1)
    each = advantage[torch.from_numpy(first)]
    assert torch.equal(advantage, each[replay.episode])
    assert len(each) > 5
    assert len(each.unique()) == len(each)
    assert float(each.double().sum()) == pytest.approx(0.0, abs=1e-4 * len(each))


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (4,), ()])
def test_groups_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """The same defect at the border: group numbers that numpy would broadcast are an error."""
    columns = np.array([1.0, 2.0, 3.0]), np.zeros(3), np.array([True, True, True])
    with pytest.raises(ContractError, match="group has shape"):
        dr_grpo(*columns, np.zeros(shape, np.int64), gamma=1.0)


@pytest.mark.parametrize("name", ["ppo_clip", "staleness_sampling"])
def test_no_sample_is_thrown_away_for_its_age(name: str, log: Log, replay: Replay) -> None:
    """Defect: stale samples are discarded, which leaves the short, fast episodes. Here age at most makes them rarer.

    Half of the decisions are 10,000 updates old: uniform passes use all equally often, weighted draws use both.
    """
    version = np.where(np.arange(replay.num_steps) % 2 == 0, 40, 40 - 10_000)
    learner = make_learner(log, replace(replay, behaviour_version=version), name)
    updates = 4 * replay.num_steps // 32 * (1 if name == "ppo_clip" else 400)
    drawn = Counter(i for batch in learner.batches(updates, np.random.default_rng(0)) for i in batch.tolist())
    old = sum(count for i, count in drawn.items() if i % 2 == 1)
    if name == "ppo_clip":
        assert set(drawn.values()) == {4}
    else:
        assert 0 < old < sum(drawn.values()) / 100


def test_the_logged_probability_stays_the_denominator(log: Log, replay: Replay) -> None:
    """Defect: log-probabilities recomputed with the current policy take log_mu's place, so that no ratio is left.

    After an update and a recomputation of advantages the items still hold the log's numbers, and l moved from them.
    """
    learner = make_learner(log, replay, "ppo_clip", learning_rate=0.1)
    index = torch.arange(32)
    before = learner.policy_step(index).items
    learner.refresh_advantages()
    after = learner.policy_step(index).items
    for items in (before, after):
        assert torch.equal(items.log_mu, replay.log_mu[index])
        assert items.log_ratio.abs().max() > 0.1
    assert not torch.equal(before.log_ratio, after.log_ratio)


def test_stored_and_recomputed_values_are_told_apart(log: Log, replay: Replay) -> None:
    """Defect: a flag for recomputed values that does nothing. On values other than the log's, advantages differ."""
    policy = load_start_policy(log, CPU)
    fresh, stored = (
        estimate_advantages(policy, replay, AdvantageSettings(estimator=name)).advantage
        for name in ("gae", "gae_stored")
    )
    assert np.abs(fresh - stored).max() > 1e-3


@pytest.mark.parametrize("name", ["GAE", "Retrace", "vTrace"])
def test_names_are_looked_up_as_they_are_written(name: str) -> None:
    """Defect: names lose their capitals when registered but not when looked up. Here one spelling is right."""
    assert all(known == known.lower() for known in ESTIMATORS)
    with pytest.raises(ConfigError, match="Unknown advantage estimator"):
        find_estimator(name)
