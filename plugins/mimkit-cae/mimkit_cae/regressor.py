"""The latent contextual regressor. Source: CAE, arXiv 2202.03026, section 3.1, and its code."""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from mimkit import Module, Stream, as_stream
from mimkit_cae.block import add_branch
from mimkit_cae.initialisation import special_token


class Regressor(Module):
    """Predicts what the encoder would say of the masked patches, from the visible ones.

    Args:
        embed_dim: D, the width of the head.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of a block's MLP, as a multiple of ``embed_dim``.
        layer_scale: initial value of the factors on each residual branch; None or 0 for no
            factors.
        drop_path: rate of stochastic depth of the last block; rises linearly from 0.
        stream: what blocks hand on under autocast to bfloat16 (`mimkit.as_stream`).
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        *,
        num_heads: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        stream: Stream = "float32",
    ) -> None:
        super().__init__()
        self.stream = stream
        self.mask_token = special_token(embed_dim)
        self.blocks = nn.ModuleList(
            RegressorBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                layer_scale,
                drop_path * number / max(depth - 1, 1),
            )
            for number in range(depth)
        )
        self.norm = LayerNorm(embed_dim)  # eps 1e-6

    def forward(self, visible: Tensor, visible_positions: Tensor, positions: Tensor) -> Tensor:
        """Fills the mask token at each masked patch; what is visible stays as it is.

        Args:
            visible: (B, S, D), the encoder's patches without the class token.
            visible_positions: (B, S, D).
            positions: (B, M, D), of the masked patches.

        Shape: (B, M, D).
        """
        x, visible, placed, positions = (
            as_stream(tokens, self.stream)
            for tokens in (
                self.mask_token.expand_as(positions),
                visible,
                visible + visible_positions,
                positions,
            )
        )
        for block in self.blocks:
            x = block(x, positions, visible, placed)
        latent: Tensor = self.norm(x)
        return latent


class RegressorBlock(Module):
    """Cross-attention of the masked patches to the visible ones and to each other, then an MLP.

    Positions reach queries and keys, not values. The norm between attention and MLP replaces the
    stream; it is no branch of it, unlike in the blocks of encoder and decoder.

    Args:
        embed_dim: D.
        num_heads: attention heads.
        mlp_ratio: width of the MLP, as a multiple of ``embed_dim``.
        layer_scale: initial value of the factors on both branches; None or 0 for no factors.
        drop_path: rate of stochastic depth of both branches.

    Source: names and arithmetic of the released code, whose releases agree.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1_q = LayerNorm(embed_dim)
        self.norm1_k = LayerNorm(embed_dim)
        self.norm1_v = LayerNorm(embed_dim)
        self.cross_attn = CrossAttention(embed_dim, num_heads)
        self.norm2_cross = LayerNorm(embed_dim)
        self.mlp_cross = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.gamma_1_cross = _factors(embed_dim, layer_scale)
        self.gamma_2_cross = _factors(embed_dim, layer_scale)

    def forward(self, x: Tensor, positions: Tensor, visible: Tensor, placed: Tensor) -> Tensor:
        """Moves the masked patches.

        Args:
            x: (B, M, D), the masked patches.
            positions: (B, M, D), of the masked patches.
            visible: (B, S, D), the visible patches.
            placed: (B, S, D), the visible patches with their positions added.

        Shape: (B, M, D).
        """
        query = x + positions
        attended = self.cross_attn(
            self.norm1_q(query),
            self.norm1_k(torch.cat([placed, query], dim=1)),  # (B, S + M, D)
            self.norm1_v(torch.cat([visible, x], dim=1)),  # (B, S + M, D)
        )
        x = add_branch(x, attended, self.gamma_1_cross, self.drop_path)
        x = self.norm2_cross(x).to(x.dtype)
        return add_branch(x, self.mlp_cross(x), self.gamma_2_cross, self.drop_path)


class CrossAttention(Module):
    """Attention with a projection each for queries, keys and values; keys have no bias.

    Args:
        embed_dim: D.
        num_heads: attention heads.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim, bias=False)
        self.k = nn.Linear(embed_dim, embed_dim, bias=False)
        self.v = nn.Linear(embed_dim, embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dim))
        self.v_bias = nn.Parameter(torch.zeros(embed_dim))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attends.

        Shape: query (B, M, D), key and value (B, T, D); result (B, M, D).
        """
        attended = F.scaled_dot_product_attention(
            self._heads(F.linear(query, self.q.weight, self.q_bias)),
            self._heads(self.k(key)),
            self._heads(F.linear(value, self.v.weight, self.v_bias)),
        )
        joined: Tensor = self.proj(rearrange(attended, "b h m d -> b m (h d)"))
        return joined

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h d) -> b h t d", h=self.num_heads)


def _factors(embed_dim: int, layer_scale: float | None) -> nn.Parameter | None:
    return nn.Parameter(torch.full((embed_dim,), layer_scale)) if layer_scale else None
