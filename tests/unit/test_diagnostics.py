"""Diagnostics against hand computations."""

import pytest
import torch

from replaybench.baseline import Items, evaluate_surrogate, load_baseline
from replaybench.diagnostics import score_share_back


def scores(name: str, log_ratio: torch.Tensor, advantage: torch.Tensor, **settings: float) -> torch.Tensor:
    baseline = load_baseline(name)
    items = Items(
        log_pi=log_ratio - 5.0,
        log_mu=torch.full_like(log_ratio, -5.0),
        advantage=advantage,
        mask=torch.ones_like(log_ratio, dtype=torch.bool),
    )
    return evaluate_surrogate(baseline, baseline.config(settings), items).score


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
