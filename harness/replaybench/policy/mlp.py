"""Actor-critic of the Meta-World experiments: a shared encoder, 4 x K action logits, a detached value head.

Source: the authors' public single-process trainer, described in docs/protocol.md; sizes are settings.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from replaybench.policy import PolicyOutput
from replaybench.policy.linear import Linear

CLIP = 5.0
MIN_SCALE = 0.01


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> Linear:
    """Returns a linear layer with PyTorch's usual uniform initialisation, drawn from `generator`."""
    layer = Linear(inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _in_numpy(layers: nn.Sequential) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Returns the layers for one vector, on the same memory: calling torch's costs more than their arithmetic."""
    steps = [_step_in_numpy(layer) for layer in layers]

    def run(vector: NDArray[Any]) -> NDArray[Any]:
        for step in steps:
            vector = step(vector)
        return vector

    return run


def _step_in_numpy(layer: nn.Module) -> Callable[[NDArray[Any]], NDArray[Any]]:
    if isinstance(layer, nn.ReLU):
        return lambda vector: np.maximum(vector, 0)
    assert isinstance(layer, nn.Linear | nn.LayerNorm)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    if isinstance(layer, nn.Linear):
        return lambda vector: weight @ vector + bias
    eps = layer.eps

    def normalise(vector: NDArray[Any]) -> NDArray[Any]:
        centred = vector - vector.mean()
        return np.asarray(centred * ((centred @ centred) / len(centred) + eps) ** -0.5 * weight + bias)

    return normalise


class MLPPolicy(nn.Module):
    """Linear-ReLU-LayerNorm encoder H; policy head H-H-LN-A*K; value head H-V-LN-1 on detached features.

    Args:
        observation_size: Numbers of an observation.
        num_action_tokens: A, one per action dimension.
        num_bins: K bins of each action dimension.
        hidden: H, width of encoder and policy head.
        value_hidden: V, width of the value head.
        generator: Source of the initial weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        observation_size: int,
        num_action_tokens: int,
        num_bins: int,
        generator: torch.Generator,
        hidden: int = 512,
        value_hidden: int = 256,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "observation_size": observation_size,
            "num_action_tokens": num_action_tokens,
            "num_bins": num_bins,
            "hidden": hidden,
            "value_hidden": value_hidden,
        }
        self.register_buffer("mean", torch.zeros(observation_size))
        self.register_buffer("scale", torch.ones(observation_size))
        self.encoder = nn.Sequential(_linear(observation_size, hidden, generator), nn.ReLU(), nn.LayerNorm(hidden))
        self.policy_head = nn.Sequential(
            _linear(hidden, hidden, generator),
            nn.ReLU(),
            nn.LayerNorm(hidden),
            _linear(hidden, num_action_tokens * num_bins, generator),
        )
        self.value_head = nn.Sequential(
            _linear(hidden, value_hidden, generator),
            nn.ReLU(),
            nn.LayerNorm(value_hidden),
            _linear(value_hidden, 1, generator),
        )

    def fit_normaliser(self, observations: Tensor) -> None:
        """Standardises inputs by the mean and standard deviation of these observations, [N, D]."""
        self.mean.copy_(observations.mean(0))
        self.scale.copy_(observations.std(0).clamp(min=MIN_SCALE))

    def _encode(self, observations: Tensor) -> Tensor:
        features: Tensor = self.encoder(((observations - self.mean) / self.scale).clamp(-CLIP, CLIP))
        return features

    def forward(self, observations: Tensor) -> PolicyOutput:
        features = self._encode(observations)
        tokens, bins = self.settings["num_action_tokens"], self.settings["num_bins"]
        logits_BAK = self.policy_head(features).view(-1, tokens, bins)
        return PolicyOutput(logits_BAK, self.value_head(features.detach()).squeeze(-1))

    def value(self, observations: Tensor) -> Tensor:
        return self.value_of(self.value_features(observations))

    def value_features(self, observations: Tensor) -> Tensor:
        with torch.no_grad():
            return self._encode(observations)

    def value_of(self, features: Tensor) -> Tensor:
        value: Tensor = self.value_head(features).squeeze(-1)
        return value

    def lone_actor(self) -> Callable[[NDArray[Any]], tuple[NDArray[np.float32], float]]:
        encode, act, judge = (_in_numpy(part) for part in (self.encoder, self.policy_head, self.value_head))
        mean, scale = self.mean.numpy(), self.scale.numpy()
        shape = self.settings["num_action_tokens"], self.settings["num_bins"]

        def evaluate(observation: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
            features = encode(((observation - mean) / scale).clip(-CLIP, CLIP))
            return act(features).reshape(shape), float(judge(features)[0])

        return evaluate

    def policy_parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.policy_head.parameters()]

    def value_parameters(self) -> list[nn.Parameter]:
        return list(self.value_head.parameters())
