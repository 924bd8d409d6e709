"""The two vision transformers, DINOv2 and SigLIP, with the parameter names of the published checkpoints.

The model reads the patches before the last block, without the final norm. What is never used (last block, final
norm, attention pooling) is still a parameter, since checkpoints hold it and adapters are made for it.
Shape letters: B images, N patches, S tokens (prefix and patches), D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from replaybench.policy.openvla_oft.config import TowerConfig


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x_BSD: Tensor) -> Tensor:
        return x_BSD * self.scale_factor


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        B, S, D = x_BSD.shape
        q, k, v = self.qkv(x_BSD).view(B, S, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, S, D)
        out: Tensor = self.proj(mixed)
        return out


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block, with LayerScale in DINOv2."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, config.num_heads)
        self.ls1 = LayerScale(width) if config.has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.mlp_hidden)
        self.ls2 = LayerScale(width) if config.has_layer_scale else nn.Identity()

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.ls1(self.attn(self.norm1(x_BSD)))
        out: Tensor = x_BSD + self.ls2(self.mlp(self.norm2(x_BSD)))
        return out


class AttentionPool(nn.Module):
    """SigLIP's pooling head: parameters alone, since the patches are read before it."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.mlp_hidden)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches_BND: Tensor = self.proj(pixels).flatten(2).transpose(1, 2)
        return patches_BND


class VisionTransformer(nn.Module):
    """Maps images [B, 3, H, W] to the patch features [B, N, D] that leave the block before the last."""

    def __init__(self, config: TowerConfig, num_patches: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.config = config
        self.checkpointing = False
        if config.has_class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        if config.has_attention_pool:
            self.attn_pool = AttentionPool(config)

    def forward(self, pixels: Tensor) -> Tensor:
        # Positions are those of patches; class token and registers have none.
        x_BSD = self.patch_embed(pixels) + self.pos_embed
        prefix = self._prefix(len(x_BSD))
        num_prefix = sum(token.shape[1] for token in prefix)
        x_BSD = torch.cat([*prefix, x_BSD], dim=1)
        for block in self.blocks[:-1]:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x_BSD = checkpoint(block, x_BSD, use_reentrant=False)
            else:
                x_BSD = block(x_BSD)
        patches_BND: Tensor = x_BSD[:, num_prefix:]
        return patches_BND

    def _prefix(self, batch: int) -> list[Tensor]:
        tokens = []
        if self.config.has_class_token:
            tokens.append(self.cls_token.expand(batch, -1, -1))
        if self.config.num_registers:
            tokens.append(self.reg_token.expand(batch, -1, -1))
        return tokens

    def unused_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the forward pass never reads."""
        unused = [*self.blocks[-1].parameters(), *self.norm.parameters()]
        return unused + (list(self.attn_pool.parameters()) if self.config.has_attention_pool else [])


class FusedVision(nn.Module):
    """Both towers side by side: features are concatenated by channel, images by token.

    Pixels are [B, 6 n, H, W]; each of the n images has three channels normalised for DINOv2, then three for SigLIP.
    """

    def __init__(self, towers: tuple[TowerConfig, TowerConfig], num_patches: int) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(towers[0], num_patches)
        self.fused_featurizer = VisionTransformer(towers[1], num_patches)

    def forward(self, pixels: Tensor) -> Tensor:
        per_image = []
        for image in pixels.split(6, dim=1):
            dino, siglip = image.split(3, dim=1)
            per_image.append(torch.cat([self.featurizer(dino), self.fused_featurizer(siglip)], dim=-1))
        return torch.cat(per_image, dim=1)
