"""Times the norms of 512 items' gradients against a loop of backward passes, on the Meta-World policy.

python tests/bench/run.py gradient_norms
"""

from collections.abc import Iterator
from functools import partial

import torch
from ratio import Ratio, in_turn
from torch import Tensor

from replaybench.gradients import GradientMeter
from replaybench.maths.ratios import token_log_prob
from replaybench.policy.mlp import MLPPolicy
from replaybench.seeding import torch_generator

BATCH = 512
ROUNDS = 5
SIZES = {
    "default sweep": {"num_bins": 32, "hidden": 128, "value_hidden": 128},
    "published trainer": {"num_bins": 256, "hidden": 512, "value_hidden": 256},
}
Inputs = tuple[Tensor, Tensor, Tensor]


def gradient(policy: MLPPolicy, inputs: Inputs) -> list[Tensor]:
    """Returns the gradient of a batch by an ordinary backward pass."""
    observations, actions, score = inputs
    log_pi = token_log_prob(policy(observations).logits_BAK, actions)
    return list(torch.autograd.grad((score * log_pi).sum(), policy.policy_parameters()))


def loop_squared_norms(policy: MLPPolicy, inputs: Inputs) -> Tensor:
    items = zip(*(part.split(1) for part in inputs), strict=True)
    return torch.stack([torch.stack([g.square().sum() for g in gradient(policy, item)]).sum() for item in items])


def squared_norms(meter: GradientMeter, inputs: Inputs) -> Tensor:
    observations, actions, score = inputs
    units = torch.arange(len(observations))
    return meter.measure(observations, units, lambda x: (score * token_log_prob(x, actions)).sum()).squared_norm


def ratios() -> Iterator[Ratio]:
    """Yields the time of the loop over that of the norms, at two sizes of the policy."""
    for label, sizes in SIZES.items():
        generator = torch_generator("bench")
        policy = MLPPolicy(observation_size=39, num_action_tokens=4, generator=generator, **sizes)
        inputs = (
            torch.randn(BATCH, 39, generator=generator),
            torch.randint(0, sizes["num_bins"], (BATCH, 4), generator=generator),
            torch.randn(BATCH, 4, generator=generator),
        )
        meter = GradientMeter(policy)
        expected = loop_squared_norms(policy, inputs).double()
        error = float(((squared_norms(meter, inputs) - expected) / expected).abs().max())
        loop, ours = partial(loop_squared_norms, policy, inputs), partial(squared_norms, meter, inputs)
        note = f"{label}, {BATCH} items, largest relative error {error:.0e}"
        name = "gradient_norms_vs_loop" if label == "default sweep" else f"gradient_norms_vs_loop_{label.split()[0]}"
        yield Ratio(name, in_turn(loop, ours, ROUNDS), "times faster than a backward pass an item", note)
