"""What fine-tuning and dense tasks make of CAE's encoder."""

from typing import cast

import torch
from timm.models.beit import Attention
from torch import Tensor, nn

from mimkit import Backbone, DenseTransformer, Encoder, Grid, set_drop_path


class PooledCAE(Backbone):
    """The mean of the patches' last states, normalised; every block has relative positions too.

    Args:
        vit: a transformer without a final norm, with timm's blocks in ``blocks``, which this
            network owns from now on.
        norm: of the mean; owned likewise.
        grid: of the images to come.

    Source: the released fine-tuning code: the norm starts as the pre-trained final norm, tables
        of relative positions at zero, and the class token is not decayed (in pre-training it is).
    """

    def __init__(self, vit: Encoder, norm: nn.Module, grid: Grid) -> None:
        super().__init__()
        self.vit = vit
        self.fc_norm = norm
        _add_relative_positions(vit, grid)
        self.num_features = vit.embed_dim

    def forward(self, image: Tensor) -> Tensor:
        """Gives one vector per image: (B, C, H, W) to (B, D)."""
        pooled: Tensor = self.fc_norm(self.vit(image).patches.mean(dim=1))
        return pooled

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists embedding, every block, norm: depth + 2 groups.

        Source: BEiT's code, and so CAE's, in which the norm has the classifier's rate.
        """
        embedding = [p for name, p in self.vit.named_parameters() if not name.startswith("blocks.")]
        blocks = self.vit.get_submodule("blocks").children()
        return [
            embedding,
            *(list(block.parameters()) for block in blocks),
            list(self.fc_norm.parameters()),
        ]

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth of every block, rising linearly from 0 to ``rate``."""
        set_drop_path(self.vit.get_submodule("blocks").children(), rate)

    def no_weight_decay(self) -> frozenset[str]:
        """The class token; tables of relative positions are decayed."""
        return frozenset({"vit.cls_token"})


class DenseCAE(DenseTransformer):
    """Maps of four blocks; every block has relative positions too, as in fine-tuning.

    Args:
        vit: a transformer without a final norm, with timm's blocks in ``blocks``, which this
            network owns from now on.
        norm: the pre-trained final norm; owned likewise.
        grid: of the images to come.

    Source: the released segmentation code, which adds the tables as fine-tuning does.
    """

    def __init__(self, vit: Encoder, norm: nn.Module, grid: Grid) -> None:
        super().__init__(vit, norm, grid)
        _add_relative_positions(vit, grid)

    def no_weight_decay(self) -> frozenset[str]:
        """The class token; tables of relative positions are decayed."""
        return frozenset({"vit.cls_token"})


def _add_relative_positions(vit: Encoder, grid: Grid) -> None:
    for block in vit.get_submodule("blocks").children():
        block.attn = _with_relative_positions(cast(Attention, block.attn), grid)


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
