"""The decoder. Source: CAE, arXiv 2202.03026, section 3.1."""

from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from mimkit import Module, Stream, as_stream
from mimkit_cae.block import Block


class Decoder(Module):
    """Self-attention among the masked patches alone; it sees no visible patch and no class token.

    Args:
        embed_dim: D.
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
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                qkv_bias=True,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * number / max(depth - 1, 1),
                init_values=layer_scale,
            )
            for number in range(depth)
        )
        self.norm = LayerNorm(embed_dim)  # eps 1e-6

    def forward(self, latent: Tensor, positions: Tensor) -> Tensor:
        """Adds positions and attends.

        Shape: latent and positions (B, M, D); result (B, M, D).
        """
        x = as_stream(latent + positions, self.stream)
        for block in self.blocks:
            x = block(x)
        decoded: Tensor = self.norm(x)
        return decoded
