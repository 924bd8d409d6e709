"""Softmax policy over a table of states, for the analytic suites."""

from typing import Any

import torch
from torch import Tensor, nn

from replaybench.policy import PolicyOutput


class TabularPolicy(nn.Module):
    """Independent logits and value for each state; one action token (A=1).

    An observation is [B, 1], the index of the state.

    Args:
        num_states: Rows of the table.
        num_bins: Actions K.
        generator: Unused; the table starts uniform.
    """

    def __init__(self, *, num_states: int, num_bins: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"num_states": num_states, "num_bins": num_bins}
        self.logits = nn.Parameter(torch.zeros(num_states, 1, num_bins))
        self.values = nn.Parameter(torch.zeros(num_states))

    def forward(self, observations: Tensor) -> PolicyOutput:
        state_B = observations[:, 0].long()
        return PolicyOutput(self.logits[state_B], self.values[state_B])

    def value(self, observations: Tensor) -> Tensor:
        return self.values[observations[:, 0].long()]

    def fit_normaliser(self, observations: Tensor) -> None:
        """State indices are not normalised."""

    def policy_parameters(self) -> list[nn.Parameter]:
        return [self.logits]

    def value_parameters(self) -> list[nn.Parameter]:
        return [self.values]


class TabularQPolicy(nn.Module):
    """Independent logits and action values for each state; one action token (A=1).

    The value of a state is the expectation of its action values under the policy; fitting it moves the action
    values and not the policy.

    Args:
        num_states: Rows of the table.
        num_bins: Actions K.
        generator: Unused; the table starts uniform.
    """

    def __init__(self, *, num_states: int, num_bins: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"num_states": num_states, "num_bins": num_bins}
        self.logits = nn.Parameter(torch.zeros(num_states, 1, num_bins))
        self.q = nn.Parameter(torch.zeros(num_states, num_bins))

    def forward(self, observations: Tensor) -> PolicyOutput:
        return PolicyOutput(self.logits[observations[:, 0].long()], self.value(observations))

    def value(self, observations: Tensor) -> Tensor:
        probability_BK = torch.softmax(self.logits[observations[:, 0].long(), 0].detach(), -1)
        return (probability_BK * self.action_values(observations)).sum(-1)

    def action_values(self, observations: Tensor) -> Tensor:
        return self.q[observations[:, 0].long()]

    def fit_normaliser(self, observations: Tensor) -> None:
        """State indices are not normalised."""

    def policy_parameters(self) -> list[nn.Parameter]:
        return [self.logits]

    def value_parameters(self) -> list[nn.Parameter]:
        return [self.q]
