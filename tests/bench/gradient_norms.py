"""Times the norms of 512 items' gradients against a loop of backward passes, on the Meta-World policy.

python tests/bench/gradient_norms.py
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from replaybench.gradients import GradientMeter
from replaybench.maths.ratios import token_log_prob
from replaybench.policy.mlp import MLPPolicy
from replaybench.seeding import torch_generator

BATCH = 512
REPEATS = 5
SIZES = {
    "default sweep": {"num_bins": 32, "hidden": 128, "value_hidden": 128},
    "published trainer": {"num_bins": 256, "hidden": 512, "value_hidden": 256},
}
Inputs = tuple[Tensor, Tensor, Tensor]


def fastest(action: Callable[[], object], repeats: int) -> float:
    """Returns the shortest of several times, in milliseconds: other work on the machine only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


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


def main() -> None:
    torch.set_num_threads(1)
    for name, sizes in SIZES.items():
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
        loop = fastest(partial(loop_squared_norms, policy, inputs), 2)
        once = fastest(partial(squared_norms, meter, inputs), REPEATS)
        plain = fastest(partial(gradient, policy, inputs), REPEATS)
        print(f"{name}: loop {loop:.0f} ms, norms {once:.1f} ms, one backward pass {plain:.1f} ms")
        print(f"{name}: {loop / once:.0f} times faster than the loop, largest relative error {error:.0e}")


if __name__ == "__main__":
    main()
