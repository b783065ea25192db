"""What fine-tuning makes of CAE's encoder."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from timm.models.beit import Attention
from torch import Tensor, nn

from mimkit import Backbone, Grid, set_drop_path

if TYPE_CHECKING:
    from mimkit_cae.encoder import CAEViT


class PooledCAE(Backbone):
    """The mean of the patches' last states, normalised; every block has relative positions too.

    Args:
        vit: the encoder to start from, which is copied.
        grid: of the images to come.
        pos_embed: (1, 1 + N, D), the fixed positions on that grid.

    Source: the released fine-tuning code: the norm starts as the pre-trained final norm, tables
        of relative positions at zero, and the class token is not decayed (in pre-training it is).
    """

    def __init__(self, vit: CAEViT, grid: Grid, pos_embed: Tensor) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.grid = grid
        self.vit.pos_embed = pos_embed.to(vit.pos_embed)
        self.fc_norm = self.vit.norm
        self.vit.norm = nn.Identity()
        for block in self.vit.blocks:
            block.attn = _with_relative_positions(cast(Attention, block.attn), grid)
        self.num_features = vit.embed_dim

    def forward(self, image: Tensor) -> Tensor:
        """Gives one vector per image: (B, C, H, W) to (B, D)."""
        pooled: Tensor = self.fc_norm(self.vit(image).patches.mean(dim=1))
        return pooled

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists embedding, every block, norm: depth + 2 groups.

        Source: BEiT's code, and so CAE's, in which the norm has the classifier's rate.
        """
        vit = self.vit
        return [
            [vit.cls_token, *vit.patch_embed.parameters()],
            *(list(block.parameters()) for block in vit.blocks),
            list(self.fc_norm.parameters()),
        ]

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth of every block, rising linearly from 0 to ``rate``."""
        set_drop_path(self.vit.blocks, rate)

    def no_weight_decay(self) -> frozenset[str]:
        """The class token; tables of relative positions are decayed."""
        return frozenset({"vit.cls_token"})


def _with_relative_positions(attention: Attention, grid: Grid) -> Attention:
    """Copies an attention, with a table of relative positions that is zero."""
    weight = attention.proj.weight
    with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced below
        copied = Attention(
            weight.shape[0],
            attention.num_heads,
            qkv_bias=True,
            window_size=(grid.rows, grid.cols),
        )
    copied.load_state_dict(copied.state_dict() | attention.state_dict())
    return copied.to(weight)
