"""The policy contract: one observation gives the whole factorised distribution and a value.

Shape letters: B decisions, A action tokens, K bins.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from replaybench.plugins import load_object, settings_of

ENTRY_POINT_GROUP = "replaybench.policies"
BUILT_IN = {
    "tabular": "replaybench.policy.tabular:TabularPolicy",
    "tabular_q": "replaybench.policy.tabular:TabularQPolicy",
    "mlp": "replaybench.policy.mlp:MLPPolicy",
    "openvla_oft": "replaybench.policy.openvla_oft.policy:OpenVLAOFTPolicy",
}


class Workload(NamedTuple):
    """What is asked of a policy, counted in observations.

    Args:
        what, runs: By whom, and how many there are of them.
        updates, batch_size: Updates of the policy, and decisions of each.
        value_forwards: Forward passes for values and advantages alone.
        decisions: Forward passes to act.
        logged_observations: Observations that are learned from.
    """

    what: str
    runs: int
    updates: int
    batch_size: int
    value_forwards: int
    decisions: int
    logged_observations: int


class PolicyOutput(NamedTuple):
    """logits [B, A, K] of every action token, and the value [B] of the observation."""

    logits_BAK: Tensor
    value_B: Tensor


class Policy(Protocol):
    """A torch module that maps observations to a PolicyOutput.

    `settings` are the keyword arguments that rebuild it; its weights travel as safetensors.
    `policy_parameters` and `value_parameters` are disjoint and cover everything that is trained.
    """

    settings: dict[str, Any]

    def __call__(self, observations: Tensor) -> PolicyOutput: ...
    def value(self, observations: Tensor) -> Tensor: ...
    def fit_normaliser(self, observations: Tensor) -> None: ...
    def policy_parameters(self) -> list[nn.Parameter]: ...
    def value_parameters(self) -> list[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object: ...
    def to(self, device: torch.device) -> object: ...


@runtime_checkable
class ActionValuePolicy(Protocol):
    """A policy of one action token that also estimates the value of each action, [B, K].

    Its `value` is the expectation of these under its own distribution, and `value_parameters` are theirs.
    """

    def action_values(self, observations: Tensor) -> Tensor: ...


@runtime_checkable
class ValueHeadPolicy(Protocol):
    """A policy whose value head reads features that no gradient of the value reaches.

    `value(observations)` is `value_of(value_features(observations))`; the features stay as they are while only the
    value head is trained.
    """

    def value_features(self, observations: Tensor) -> Tensor: ...
    def value_of(self, features: Tensor) -> Tensor: ...


@runtime_checkable
class LoneActingPolicy(Protocol):
    """A policy that evaluates one observation on a CPU faster than a batch of one.

    `lone_actor` returns what maps an observation to its logits [A, K] and value, with the weights as they are when it
    is called, as long as they stay in the same memory.
    """

    def lone_actor(self) -> Callable[[NDArray[Any]], tuple[NDArray[np.float32], float]]: ...


def has_action_values(kind: str) -> bool:
    """Returns whether policies of this kind estimate action values."""
    return hasattr(load_object("policy", kind, BUILT_IN, ENTRY_POINT_GROUP), "action_values")


@runtime_checkable
class PricedPolicy(Protocol):
    """A kind of policy that may be too large to time where it is planned, and then says by arithmetic what it costs.

    `costs` returns rows of quantity, value and arithmetic, or None for a size that is to be timed.
    """

    @staticmethod
    def costs(settings: Mapping[str, Any], run: Workload, lineage: Workload | None) -> list[dict[str, Any]] | None: ...


def priced(
    kind: str, settings: Mapping[str, Any], run: Workload, lineage: Workload | None
) -> list[dict[str, Any]] | None:
    """Returns what a policy of this kind costs by arithmetic, or None if it is to be timed."""
    factory = load_object("policy", kind, BUILT_IN, ENTRY_POINT_GROUP)
    return factory.costs(settings, run, lineage) if isinstance(factory, PricedPolicy) else None


@runtime_checkable
class CheckedPolicy(Protocol):
    """A kind of policy that is slow to make, and so can say beforehand that settings make none."""

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None: ...


def check_policy(kind: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings from which a policy of this kind cannot be made, as far as the kind can tell without making it.

    Raises:
        ConfigError: The kind is unknown or does not take these settings.
        DataError: A checkpoint is incomplete.
    """
    factory = load_object("policy", kind, BUILT_IN, ENTRY_POINT_GROUP)
    if isinstance(factory, CheckedPolicy):
        with settings_of("policy", kind, factory, settings):
            factory.check(settings)


def make_policy(kind: str, settings: Mapping[str, Any], generator: torch.Generator) -> Policy:
    """Builds a policy with weights drawn from `generator`.

    Args:
        kind: A built-in name, the name of an entry point in `replaybench.policies`, or `module:Class`.

    Raises:
        ConfigError: The kind is unknown or does not take these settings.
    """
    factory = load_object("policy", kind, BUILT_IN, ENTRY_POINT_GROUP)
    with settings_of("policy", kind, factory, settings):
        made: Policy = factory(**settings, generator=generator)
    return made
