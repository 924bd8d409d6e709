"""The small networks around the language model, named as in the published checkpoints.

Shape letters: B batch, N patches, D width, V values.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Maps fused patch features to the language model's width."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 4 * inputs)
        self.fc2 = nn.Linear(4 * inputs, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features_BND: Tensor) -> Tensor:
        out: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features_BND)))))
        return out


class ProprioProjector(nn.Module):
    """Maps the robot's own state to one token."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(proprio)))
        return out


class ValueHead(nn.Module):
    """Maps a hidden state [B, D] to values [B, V]; sizes and names are those of RLinf's value head."""

    def __init__(self, width: int, num_values: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 128), nn.GELU(), nn.Linear(128, num_values, bias=False)
        )

    @property
    def is_meta(self) -> bool:
        """Whether the weights have shapes alone."""
        return next(self.parameters()).is_meta

    def forward(self, hidden_BD: Tensor) -> Tensor:
        out: Tensor = self.mlp(hidden_BD.to(next(self.parameters()).dtype))
        return out
