"""One of several processes that train the same sharded policy; the first writes what it found."""

import json
import os
import sys
from pathlib import Path

import torch
from openvla_oft_learning import NUM_STEPS, gradients, learner, make_policy, replay
from safetensors.torch import save_file
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from replaybench.policy.openvla_oft.sharding import shard


def main(settings: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    chosen = json.loads(settings)
    train = chosen.pop("train")
    # Logged by another policy, so that a cache is still empty when the model is sharded.
    log = replay(make_policy(train))
    policy = make_policy(train, **chosen)
    shard(policy)
    assert all(isinstance(parameter, DTensor) for parameter in policy.parameters())
    made = learner(policy, log)
    # In another order than at first, so that a process meets images that only the other one has cached.
    batch = torch.arange(NUM_STEPS).flip(0)
    value_loss = made.value_step(batch)
    step = made.policy_step(batch)
    found, weights = gradients(policy), policy.state_dict()
    if dist.get_rank() == 0:
        numbers = {"value_loss": value_loss, "policy_loss": step.policy_loss, "grad_norm": step.grad_norm}
        tensors = {f"gradient.{name}": tensor for name, tensor in found.items()}
        tensors |= {f"weight.{name}": tensor.contiguous() for name, tensor in weights.items()}
        save_file(tensors, Path(out) / "found.safetensors")
        (Path(out) / "numbers.json").write_text(json.dumps(numbers))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Gloo's threads may still free tensors while the interpreter shuts down, which aborts (pytorch/pytorch#179291).
    os._exit(0)
