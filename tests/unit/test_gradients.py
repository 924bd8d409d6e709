"""Norms of unit gradients against a loop of ordinary backward passes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from replaybench.errors import ContractError
from replaybench.gradients import MAX_DIRECTIONS, GradientMeter
from replaybench.maths.gradient_norm import embedding_squared_norm, outer_squared_norm, sum_squared_norm
from replaybench.maths.ratios import token_log_prob
from replaybench.policy import Policy, PolicyOutput
from replaybench.policy.mlp import MLPPolicy
from replaybench.policy.tabular import TabularPolicy
from replaybench.seeding import torch_generator

RELATIVE = 1e-4


class Positions(nn.Module):
    """A tiny transformer-like policy: several positions a decision, an embedding, one layer that is called twice."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        generator = torch_generator("positions")
        self.settings: dict[str, Any] = {}
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.mix, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 5)
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 0.5, generator=generator)
        self.embedding.weight.requires_grad_(not frozen)

    def forward(self, observations: Tensor) -> PolicyOutput:
        hidden = self.embedding(observations.long())
        hidden = hidden + torch.tanh(self.mix(hidden))
        hidden = hidden + torch.tanh(self.mix(self.norm(hidden.cumsum(1))))
        return PolicyOutput(self.head(hidden[:, -2:]), hidden.sum((1, 2)))

    def value(self, observations: Tensor) -> Tensor:
        return self(observations).value_B

    def fit_normaliser(self, observations: Tensor) -> None: ...

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        return []


class Leaky(Positions):
    """Reads a layer's weight behind the layer's back."""

    def forward(self, observations: Tensor) -> PolicyOutput:
        output = super().forward(observations)
        return PolicyOutput(output.logits_BAK + self.head.weight.sum(), output.value_B)


class ManyLoose(TabularPolicy):
    """A table with more parameters than directions."""

    def __init__(self) -> None:
        super().__init__(num_states=MAX_DIRECTIONS, num_bins=4)


def mlp() -> MLPPolicy:
    return MLPPolicy(
        observation_size=9, num_action_tokens=3, num_bins=5, hidden=16, value_hidden=8, generator=torch_generator("mlp")
    )


def batch(kind: str, size: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Returns a policy, observations, logged tokens and score coefficients."""
    generator = torch_generator(kind)
    policy: Any
    if kind == "mlp":
        policy, tokens, bins = mlp(), 3, 5
        observations = torch.randn(size, 9, generator=generator)
    elif kind == "tabular":
        policy, tokens, bins = TabularPolicy(num_states=6, num_bins=4), 1, 4
        policy.logits.data.normal_(generator=generator)
        observations = torch.randint(0, 6, (size, 1), generator=generator).float()
    else:
        policy, tokens, bins = Positions(frozen=kind == "frozen"), 2, 5
        observations = torch.randint(0, 7, (size, 4), generator=generator).float()
    actions = torch.randint(0, bins, (size, tokens), generator=generator)
    return policy, observations, actions, torch.randn(size, tokens, generator=generator)


def looped(policy: Policy, observations: Tensor, actions: Tensor, score: Tensor, units: Tensor) -> Tensor:
    """Returns each unit's gradient [U, P] by a backward pass of its own."""
    rows = []
    parameters = [p for p in policy.policy_parameters() if p.requires_grad]
    for unit in units.unique():
        chosen = units == unit
        log_pi = token_log_prob(policy(observations[chosen]).logits_BAK, actions[chosen])
        grads = torch.autograd.grad((score[chosen] * log_pi).sum(), parameters)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows)


UNITS = {"items": torch.arange(12), "episodes": torch.tensor([0, 0, 0, 0, 0, 1, 2, 2, 2, 3, 3, 3])}


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("kind", ["mlp", "tabular", "positions", "frozen"])
def test_norms_and_sum_equal_a_loop_of_backward_passes(kind: str, units: str) -> None:
    """Each unit's squared norm and the total gradient agree with one backward pass a unit within 1e-4."""
    policy, observations, actions, score = batch(kind, 12)
    expected = looped(policy, observations, actions, score, UNITS[units])
    measured = GradientMeter(policy).measure(
        observations, UNITS[units], lambda logits: (score * token_log_prob(logits, actions)).sum()
    )
    assert measured.squared_norm.numpy() == pytest.approx(expected.square().sum(1).numpy(), rel=RELATIVE)
    difference = (measured.total - expected.sum(0)).norm()
    assert difference <= RELATIVE * expected.norm()


def test_measuring_leaves_no_gradient_and_no_hook_behind() -> None:
    """The policy is as before: no `.grad` on its parameters, no forward hook on its layers."""
    policy, observations, actions, score = batch("mlp", 12)
    meter = GradientMeter(policy)
    meter.measure(observations, UNITS["items"], lambda logits: (score * token_log_prob(logits, actions)).sum())
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert not any(layer._forward_hooks for layer in policy.modules())


def test_a_weight_that_is_read_outside_its_layer_is_refused() -> None:
    """Its gradient has a part that no hook sees, so its norm would be wrong without a word."""
    _, observations, _, score = batch("positions", 12)
    with pytest.raises(ContractError, match=r"Linear\.weight of shape \(5, 6\) is used outside"):
        GradientMeter(Leaky()).measure(
            observations, UNITS["items"], lambda logits: (logits.square() * score.unsqueeze(-1)).sum()
        )


def test_random_directions_estimate_the_norms_of_many_loose_parameters() -> None:
    """With more parameters than directions the norms of 40 units are right on average: within 5 standard errors.

    A random-sign projection of one unit has relative variance below 2 / directions; the units here do not overlap.
    """
    policy = ManyLoose()
    size = 40
    observations = torch.arange(size).float().unsqueeze(1)
    actions, score = torch.zeros(size, 1, dtype=torch.long), torch.linspace(1.0, 2.0, size).unsqueeze(1)
    units = torch.arange(size)
    expected = looped(policy, observations, actions, score, units).square().sum(1)
    measured = GradientMeter(policy).measure(
        observations, units, lambda logits: (score * token_log_prob(logits, actions)).sum()
    )
    ratio = measured.squared_norm / expected
    assert float(ratio.std()) > 0.01
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * (2 / MAX_DIRECTIONS / size) ** 0.5)


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (2, 50), (40, 3)])
def test_the_linear_norm_is_that_of_the_summed_outer_products(rows: int, width: int) -> None:
    """One row, few rows of a wide layer (Gram) and many of a narrow one (direct) equal the sum of outer products."""
    generator = torch_generator("outer", rows, width)
    x = torch.randn(4, rows, width, generator=generator, dtype=torch.float64)
    d = torch.randn(4, rows, width + 1, generator=generator, dtype=torch.float64)
    expected = [sum(torch.outer(d[u, r], x[u, r]) for r in range(rows)).square().sum() for u in range(4)]
    assert outer_squared_norm(x, d).tolist() == pytest.approx([float(value) for value in expected], rel=1e-12)


def test_norms_of_sums_match_a_hand_computation() -> None:
    """d = (1, 2), (3, 4): the sum (4, 6) has 52; rows of one index add up to 52, of two indices 5 + 25 = 30."""
    d = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]] * 2)
    assert sum_squared_norm(d).tolist() == [52.0, 52.0]
    assert embedding_squared_norm(torch.tensor([[5, 5], [5, 6]]), d).tolist() == [52.0, 30.0]
