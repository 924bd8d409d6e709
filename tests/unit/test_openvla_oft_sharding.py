"""The same training step in one process and sharded over two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from openvla_oft_learning import NUM_STEPS, gradients, learner, make_policy, replay
from safetensors.torch import load_file
from torch import Tensor

from replaybench.errors import ConfigError
from replaybench.policy.openvla_oft.sharding import Shares, shard

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"train": {"rank": 4, "gradient_checkpointing": True}, "microbatch": 2},
    "full": {"train": {"method": "full", "scope": "all"}, "microbatch": 8},
    "full, recomputed": {"train": {"method": "full", "scope": "all", "gradient_checkpointing": True}, "microbatch": 2},
    "cache": {"train": {"rank": 4, "top_layers": 2}, "microbatch": 2, "cache_observations": 50},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_make_the_step_of_one(name: str, tmp_path: Path) -> None:
    """Losses, gradients and the weights after it; expected: the learner in this process, on the whole batch."""
    settings = SETTINGS[name]
    run_sharded(settings, tmp_path)
    policy = make_policy(settings["train"])
    made = learner(policy, replay(policy))
    value_loss = made.value_step(torch.arange(NUM_STEPS))
    step = made.policy_step(torch.arange(NUM_STEPS))
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["value_loss"] == pytest.approx(value_loss, rel=1e-4)
    assert numbers["policy_loss"] == pytest.approx(step.policy_loss, abs=1e-5)
    assert numbers["grad_norm"] == pytest.approx(step.grad_norm, rel=1e-4)
    found = load_file(tmp_path / "found.safetensors")
    found_gradients, expected_gradients = with_prefix(found, "gradient."), gradients(policy)
    assert found_gradients.keys() == expected_gradients.keys()
    for key, tensor in expected_gradients.items():
        torch.testing.assert_close(found_gradients[key], tensor, atol=1e-6, rtol=1e-3, msg=key)
    weights = with_prefix(found, "weight.")
    assert weights.keys() == policy.state_dict().keys()
    # Adam steps by the gradient's sign, which rounding decides where the gradient is nearly zero.
    steps_apart = torch.cat([(weights[key] - tensor).flatten() for key, tensor in policy.state_dict().items()]).abs()
    assert float((steps_apart < 1e-5).float().mean()) > 0.99


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def run_sharded(settings: dict[str, Any], out: Path) -> None:
    here = Path(__file__).parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [str(here / "openvla_oft_worker.py"), json.dumps(settings), str(out)]
    paths = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch + worker, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_shares_cover_a_batch_and_pad_it_with_nothing_that_counts(rows: int) -> None:
    """Three processes; the shares in order are the batch, and filled-up rows have gradient zero, the others times 3."""
    batch = torch.arange(1.0, rows + 1)[:, None]
    own = [Shares(3, index).own(batch) for index in range(3)]
    assert len({len(share) for share in own}) == 1
    torch.testing.assert_close(torch.cat(own)[:rows], batch)
    gradient = torch.cat([Shares(3, index).own_gradient(batch) for index in range(3)])
    torch.testing.assert_close(gradient[:rows], 3 * batch)
    assert not gradient[rows:].any()


def test_sharding_without_processes_is_refused() -> None:
    """The error says how to start them."""
    with pytest.raises(ConfigError, match="Start with torchrun"):
        shard(make_policy({"method": "frozen"}))
