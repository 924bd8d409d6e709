"""OpenVLA-OFT with its discrete action head: the policy that the field post-trains with RL.

Source: Kim et al. 2024, arXiv 2406.09246 (OpenVLA); Kim et al. 2025, arXiv 2502.19645 (parallel decoding of chunks).
"""

from replaybench.policy.openvla_oft.config import VLAConfig
from replaybench.policy.openvla_oft.model import OpenVLAOFT, VLAOutput

__all__ = ["OpenVLAOFT", "VLAConfig", "VLAOutput"]
