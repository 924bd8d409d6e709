"""Diagnostics against hand computations."""

import numpy as np
import pytest
import torch

from replaybench.baseline import Items, evaluate_surrogate, load_baseline
from replaybench.diagnostics import Rows, score_share_back, step_rows
from replaybench.learner import Step
from replaybench.maths.ratios import off_policyness


def step_of(name: str, log_ratio: torch.Tensor, advantage: torch.Tensor, **settings: float) -> Step:
    baseline = load_baseline(name)
    items = Items(
        log_pi=log_ratio - 5.0,
        log_mu=torch.full_like(log_ratio, -5.0),
        advantage=advantage,
        mask=torch.ones_like(log_ratio, dtype=torch.bool),
    )
    value = evaluate_surrogate(baseline, baseline.config(settings), items)
    return Step(items=items, value=value, grad_norm=1.0, policy_loss=0.0, value_loss=0.0)


def scores(name: str, log_ratio: torch.Tensor, advantage: torch.Tensor, **settings: float) -> torch.Tensor:
    return step_of(name, log_ratio, advantage, **settings).value.score


def measured(step: Step, lag_updates: torch.Tensor | None) -> dict[str, float]:
    rows = Rows()
    step_rows(rows, 1, step, lag_updates)
    return dict(zip(rows.metric, rows.value, strict=True))


def test_the_share_that_moves_back_counts_the_score_against_the_log_ratio() -> None:
    """h = (2, -1, 3, -4) at l = (1, 1, -1, -1): the second and the third move back, 4 of 10."""
    share = score_share_back(torch.tensor([2.0, -1.0, 3.0, -4.0]), torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert share == pytest.approx(0.4)


def test_no_score_moves_nowhere() -> None:
    """The control's share is 0, not undefined."""
    assert score_share_back(torch.zeros(3), torch.ones(3)) == 0.0


def test_a_clip_leaves_only_what_moves_back() -> None:
    """Outside PPO's band only items that move towards the log keep a gradient; without a correction it is half of them.

    |l| = 1 with both signs of the advantage at each side.
    """
    log_ratio = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    assert score_share_back(scores("ppo_clip", log_ratio, advantage), log_ratio) == 1.0
    assert score_share_back(scores("no_correction", log_ratio, advantage), log_ratio) == 0.5


# Four decisions of two tokens: old, old, of middle age, new.
LAG = torch.tensor([10, 200, 5, 2])
LOG_RATIO = torch.tensor([[0.0, 1.0], [-1.0, 0.5], [3.0, 3.0], [0.1, -0.1]])
ADVANTAGE = torch.tensor([[2.0, 2.0], [1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])


def test_buckets_hold_what_a_batch_of_their_items_alone_would_measure() -> None:
    """Old is a lag of 10 or more, new of 2 or less; each bucket equals `off_policyness` of its own items."""
    step = step_of("ppo_clip", LOG_RATIO, ADVANTAGE)
    found = measured(step, LAG)
    for bucket, rows in (("old_positive", slice(0, 2)), ("new_negative", slice(3, 4))):
        alone = off_policyness(step.items.log_ratio[rows])
        for name, value in zip(("k1", "k2", "k3"), alone[:3], strict=True):
            assert found[f"kl_{name}_token_raw_{bucket}"] == pytest.approx(value, abs=1e-12)
        assert found[f"chi2_token_raw_{bucket}"] == pytest.approx(alone.chi2)
        assert found[f"ess_token_raw_{bucket}"] == pytest.approx(alone.ess)
        assert found[f"abs_log_ratio_p95_token_{bucket}"] == pytest.approx(alone.abs_log_ratio_p95)
    assert not any(name.endswith(("old_negative", "new_positive")) for name in found)


def test_weights_of_a_bucket_by_hand() -> None:
    """Of the four old items with A > 0 PPO-clip keeps e^0 and e^-1 and drops the two above 1.2."""
    found = measured(step_of("ppo_clip", LOG_RATIO, ADVANTAGE), LAG)
    kept = np.exp([0.0, -1.0])
    assert found["near_zero_share_old_positive"] == found["suppressed_share_old_positive"] == 0.5
    assert found["ess_token_applied_old_positive"] == pytest.approx(kept.sum() ** 2 / (4 * (kept**2).sum()))
    assert found["score_share_old"] == pytest.approx(
        (2 * kept[0] + kept[1]) / (2 * kept[0] + kept[1] + 2 * np.cosh(0.1))
    )


def test_a_small_weight_is_suppressed_only_against_its_ratio() -> None:
    """At l = -8 plain importance sampling has u = e^-8 < 1e-3 but w = u / rho = 1: near zero, and not suppressed."""
    found = measured(step_of("importance_sampling", torch.full((1, 1), -8.0), torch.ones(1, 1)), torch.tensor([50]))
    for name in ("positive", "old_positive"):
        assert found[f"near_zero_share_{name}"] == 1.0
        assert found[f"suppressed_share_{name}"] == 0.0


def test_the_largest_weight_stays_under_the_bound() -> None:
    """GIPO's weight peaks at l = sigma^2 with e^(sigma^2 / 2), which a batch that holds that item reaches."""
    log_ratio = torch.linspace(-3.0, 3.0, 25).reshape(-1, 1)
    found = measured(step_of("gipo", log_ratio, torch.ones_like(log_ratio), sigma=0.5), None)
    assert found["max_abs_weight"] == pytest.approx(np.exp(0.125), rel=1e-6)


def test_a_log_without_lags_has_no_buckets() -> None:
    """A sibling's log is neither old nor new."""
    found = measured(step_of("ppo_clip", LOG_RATIO, ADVANTAGE), None)
    assert not any(name.endswith(("_old", "old_positive", "new_negative")) for name in found)
