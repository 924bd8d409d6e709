"""Splits model and batch over processes (FSDP2), so that the learner need not know of them.

Every process holds the whole minibatch and computes the whole loss; each runs the model on its share of the
observations, and outputs are gathered. The gradient is that of one process, also for losses over the whole batch.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from replaybench.errors import ConfigError

if TYPE_CHECKING:
    from replaybench.policy.openvla_oft.policy import OpenVLAOFTPolicy


class Shares:
    """Which observations of a batch belong to this process; all processes have equally many.

    Args:
        count: Processes.
        index: This one's number.
    """

    def __init__(self, count: int, index: int) -> None:
        self.count, self.index = count, index

    def own(self, batch: Tensor) -> Tensor:
        """Returns this process's rows; a batch that does not divide is filled up with its last row."""
        missing = -len(batch) % self.count
        if missing:
            batch = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
        return batch.chunk(self.count)[self.index]

    def gather(self, own: Tensor) -> Tensor:
        """Returns the rows of all processes, in order."""
        if self.count == 1:
            return own
        pieces = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(pieces, own.detach().contiguous())
        return torch.cat(pieces)

    def own_gradient(self, gradient: Tensor) -> Tensor:
        """Returns the gradient of this process's rows, filled up with zeros as `own` fills the batch.

        FSDP averages over processes what has to be summed.
        """
        missing = -len(gradient) % self.count
        if missing:
            gradient = torch.cat([gradient, gradient.new_zeros(missing, *gradient.shape[1:])])
        return gradient.chunk(self.count)[self.index] * self.count

    def any(self, is_so: bool) -> bool:
        """Returns whether it is so in any process."""
        if self.count == 1:
            return is_so
        answers: list[bool] = [False] * self.count
        dist.all_gather_object(answers, is_so)
        return True in answers

    def whole(self, tensor: Tensor) -> Tensor:
        """Returns a tensor with all its shards."""
        full: Tensor = tensor.full_tensor() if self.count > 1 and hasattr(tensor, "full_tensor") else tensor
        return full


SINGLE = Shares(1, 0)


def shard(policy: "OpenVLAOFTPolicy") -> None:
    """Shards a policy's parameters over all processes of the default group, in place; call it before the optimiser.

    Raises:
        ConfigError: No process group exists, or base and adapter differ in precision.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if not dist.is_initialized():
        raise ConfigError("Sharding needs a process group. Start with torchrun and call init_process_group first.")
    if len({parameter.dtype for parameter in policy.parameters()}) > 1:
        raise ConfigError("Sharding needs weights of one precision. Set dtype to 'float32' and autocast to true.")
    model = policy.model
    towers = model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer
    for block in (*towers[0].blocks, *towers[1].blocks, *model.layers):
        fully_shard(block)
    fully_shard(model)
    for method in ("encode", "resume", "value", "resume_value"):
        register_fsdp_forward_method(model, method)
    policy.shares = Shares(dist.get_world_size(), dist.get_rank())
