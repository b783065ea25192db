"""Attention pooling and the pointer's queries. Source: Selfie, arXiv 1906.02940, section 3."""

import copy
import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from mimkit import Depth, Geometry, Head, Mask, Module, NonNegative, Rate, RecipeError, Size, Tokens
from mimkit_selfie.positions import LearnedPositions


class AttentionPooling(Module):
    """A: a learned vector is put before the patch vectors; what becomes of it is the summary.

    Args:
        embed_dim: width of the patch vectors.
        depth: transformer blocks, post-norm with GELU.
        num_heads: attention heads per block.
        mlp_dim: width of each block's MLP.
        dropout: on attention weights and before each residual sum.
    """

    def __init__(
        self, embed_dim: int, depth: int, num_heads: int, mlp_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.summary = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                embed_dim, num_heads, mlp_dim, dropout, activation="gelu", batch_first=True
            )
            for _ in range(depth)
        )

    def forward(self, tokens: Tokens) -> Tensor:
        """Pools the patches; any number of them.

        Shape: (B, S, D) to (B, D).
        """
        summary = self.summary.expand(tokens.patches.shape[0], -1, -1)
        x = torch.cat([summary.to(tokens.patches.dtype), tokens.patches], dim=1)  # (B, 1 + S, D)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


class PointerHead(Head):
    """Pools the visible patches to u; u plus the position of a hidden patch is its query.

    Args:
        geometry: grid, the encoder's width, and the one prediction to make.
        depth: blocks of the attention pooling.
        num_heads: its attention heads; must divide the encoder's width.
        mlp_dim: width of its MLPs.
        dropout: its dropout.
        positions: one learned vector per location, or rows + columns ("decomposed"); "auto":
            per location up to 4 x 4 patches.
        position_std: standard deviation of the positions' start values.
        positions_on_context: add positions to the visible patches too, so that u can know where
            they were.

    Raises: RecipeError if the head does not fit the encoder, or the target is not a vector of
        the encoder's width.
    Source: Selfie, arXiv 1906.02940, sections 3.2 and 3.3. Depth, heads and width are those of a
        re-implementation; with them P and A together have the 25 M weights of ResNet-50. Start
        values of positions, and positions on the context, are not documented;
        re-implementations add none to the context.
    """

    ragged = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        depth: Depth = 3,
        num_heads: Size = 32,
        mlp_dim: Size = 640,
        dropout: Rate = 0.1,
        positions: Literal["auto", "location", "decomposed"] = "auto",
        position_std: NonNegative = 0.5,
        positions_on_context: bool = False,
    ) -> None:
        super().__init__()
        embed_dim = geometry.embed_dim
        if embed_dim % num_heads:
            raise RecipeError(
                "head 'pointer', num_heads: must divide the encoder's width "
                f"{embed_dim}, but is {num_heads}."
            )
        self.output = _only_output(geometry)
        self.positions_on_context = positions_on_context
        self.attention_pooling = AttentionPooling(embed_dim, depth, num_heads, mlp_dim, dropout)
        self.positions = LearnedPositions(geometry.grid, embed_dim, positions, position_std)

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Gives one query per hidden patch.

        Shape: (B, G, M, D) under the one prediction's name.
        """
        if self.positions_on_context:
            placed = tokens.patches + self.positions(tokens.index)
            tokens = dataclasses.replace(tokens, patches=placed)
        summary = self.attention_pooling(tokens)  # (B, D)
        queries = summary[:, None, None] + self.positions(mask.target)  # (B, G, M, D)
        return {self.output: queries}

    def pooling(self) -> nn.Module:
        """Returns a copy of the attention pooling, which takes `Tokens` of any grid.

        It adds no positions: those of the cells of a full image were never learned.
        """
        return copy.deepcopy(self.attention_pooling)


def _only_output(geometry: Geometry) -> str:
    outputs = dict(geometry.outputs)
    if len(outputs) != 1:
        raise RecipeError(
            "head 'pointer' makes exactly one prediction, but the losses ask for "
            f"{', '.join(outputs) or 'none'}. Keep one table under [losses]."
        )
    [(name, width)] = outputs.items()
    if width.kind != "vector" or width.size != geometry.embed_dim:
        raise RecipeError(
            f"head 'pointer' compares queries with the encoder's own vectors: '{name}' must be a "
            f"vector of {geometry.embed_dim}, but its target is a {width.kind} of {width.size}. "
            "Use target 'latent'."
        )
    return name
