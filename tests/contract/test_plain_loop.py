"""The buffered trainer against a textbook loop that shares only simulator, network and random streams with it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from replaybench.buffered import iterations, start_policy
from replaybench.diagnostics import Rows
from replaybench.plan import SweepSpec, check, runs, sources
from replaybench.policy.mlp import MLPPolicy
from replaybench.seeding import torch_generator
from replaybench.store import open_log

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize("baseline", ["ppo_clip", "gipo"])
def test_the_trainer_agrees_with_a_textbook_loop(
    toy_sweep: Callable[..., SweepSpec], toy_data: Path, monkeypatch: pytest.MonkeyPatch, baseline: str
) -> None:
    """After six iterations with reuse, value-only updates, stored advantages, KL term and decay the weights agree."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    from plain_loop import plain_iterations

    base = toy_sweep()
    train = {"updates": 1, "batch_size": 32, "learning_rate": 0.05, "value_warmup_updates": 0, "kl_coefficient": 0.1}
    spec = toy_sweep(
        levels=(),
        replay_ratios=(),
        baselines=("zero", "ppo_clip", "gipo"),
        train=train | {"advantage": {"estimator": "gae_stored"}},
        evaluate=base.evaluate,
        buffered={
            "iterations": 6,
            "collect_steps": 50,
            "capacity": 170,
            "sample_rounds": 3,
            "reuse": 4,
            "actor_every": 2,
            "rate_decay": "cosine",
            "start": "start_policy",
        },
        regimes={"stale": {}},
    )
    found = sources(spec, toy_data)
    run = next(one for one in runs(spec, found, check(spec, found)) if one.baseline == baseline and one.lineage == 0)
    log = open_log(Path(run.data_folder))
    assert run.buffered is not None
    ours, plain = (start_policy(run.buffered, run, log, torch.device("cpu")) for _ in range(2))
    start = {name: weights.clone() for name, weights in ours.state_dict().items()}
    for _ in zip(iterations(run, log, ours, Rows()), plain_iterations(run, log, plain), strict=True):
        for name, weights in ours.state_dict().items():
            torch.testing.assert_close(weights, plain.state_dict()[name], atol=1e-5, rtol=1e-4)
    assert all((weights - start[name]).abs().max() > 0.01 for name, weights in ours.state_dict().items())


def test_the_plain_network_is_the_harness_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits and values of random observations, some beyond the clipping."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    from plain_loop import PlainNetwork

    policy = MLPPolicy(observation_size=39, num_action_tokens=4, num_bins=32, generator=torch_generator("plain"))
    observations = 3 * torch.randn(300, 39, generator=torch_generator("observations"))
    policy.fit_normaliser(observations / 3)
    for ours, plain in zip(policy(observations), PlainNetwork(policy)(observations), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
