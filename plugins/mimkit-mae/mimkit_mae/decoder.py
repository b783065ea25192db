"""MAE's decoder: mask tokens join what the encoder saw, and a small transformer fills them in."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit import (
    Depth,
    Geometry,
    Head,
    Mask,
    Multiple,
    RecipeError,
    Size,
    Stream,
    Tokens,
    as_stream,
    scatter,
    sincos,
    take,
)

_TOKEN_STD: Final = 0.02


class MAEDecoder(Head):
    """Decodes the whole grid at a width of its own and predicts linearly at the targets.

    Whatever position did not enter the encoder is a mask token, also one that is no target. A
    class token is decoded along with the patches, without a position. A padded target reads a
    place of the grid and adds none to it, so the numbers of targets may differ between images.

    Args:
        geometry: grid, the encoder's width and the predictions to make.
        embed_dim: width of the decoder, which need not be the encoder's.
        depth: transformer blocks; without one the mask tokens would see nothing.
        num_heads: attention heads per block.
        mlp_ratio: width of a block's MLP, as a multiple of ``embed_dim``.
        order: whose waves come first in the fixed positions, the row's or the column's.
        stream: what blocks hand on under autocast to bfloat16 (`mimkit.as_stream`).

    Raises: RecipeError if ``num_heads`` or 4 does not divide ``embed_dim``.
    Source: MAE, arXiv 2111.06377, section 3 and appendix A.1. Class token, epsilon 1e-6 of the
        norms and the start values (Xavier's uniform, mask token of deviation 0.02) are those of
        the released code. That predicts all patches and picks the masked ones in the loss; here
        they are picked before the last norm, which changes no number. Its positions have
        order = "cols", the same up to a permutation of the width.
    """

    miniature: ClassVar[Mapping[str, Any]] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    ragged = True
    positions: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        embed_dim: Size = 512,
        depth: Depth = 8,
        num_heads: Size = 16,
        mlp_ratio: Multiple = 4.0,
        order: Literal["rows", "cols"] = "rows",
        stream: Stream = "float32",
    ) -> None:
        super().__init__()
        if embed_dim % 4:
            raise RecipeError(
                "head 'mae_decoder', embed_dim: must be a multiple of 4 for sine-cosine "
                f"positions, but is {embed_dim}."
            )
        if embed_dim % num_heads:
            raise RecipeError(
                f"head 'mae_decoder', num_heads: must divide embed_dim = {embed_dim}, "
                f"but is {num_heads}."
            )
        self.stream = stream
        self.embed = nn.Linear(geometry.embed_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("positions", sincos(geometry.grid, embed_dim, order))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(depth)
        )
        self.norm = LayerNorm(embed_dim)  # eps 1e-6
        self.predictors = nn.ModuleDict(
            {name: nn.Linear(embed_dim, width.size) for name, width in geometry.outputs.items()}
        )
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.mask_token, std=_TOKEN_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Decodes every position and predicts at the targets.

        Shape: each (B, G, M, K).
        """
        seen = self.embed(tokens.patches)  # (B, S, E)
        empty = self.mask_token.to(seen.dtype).expand(seen.shape[0], mask.grid.num_patches, -1)
        patches = scatter(empty, tokens.index, seen) + self.positions  # (B, N, E)
        prefix = self.embed(tokens.prefix).to(patches.dtype)  # (B, R, E)
        x = as_stream(torch.cat([prefix, patches], dim=1), self.stream)
        for block in self.blocks:
            x = block(x)
        at_targets = self.norm(take(x[:, prefix.shape[1] :], mask.target))  # (B, G, M, E)
        return {name: predict(at_targets) for name, predict in self.predictors.items()}
