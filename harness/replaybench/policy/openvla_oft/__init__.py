"""OpenVLA-OFT with its discrete action head: the policy that the field post-trains with RL.

Source: Kim et al. 2024, arXiv 2406.09246 (OpenVLA); Kim et al. 2025, arXiv 2502.19645 (parallel decoding of chunks).
"""

from typing import TYPE_CHECKING, Any

from replaybench.policy.openvla_oft.config import VLAConfig

if TYPE_CHECKING:
    from replaybench.policy.openvla_oft.model import OpenVLAOFT, VLAOutput

__all__ = ["OpenVLAOFT", "VLAConfig", "VLAOutput"]


def __getattr__(name: str) -> Any:
    # Suites read action bins and images by this package; only the model needs the extra `vla`.
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from replaybench.policy.openvla_oft import model

    return getattr(model, name)
