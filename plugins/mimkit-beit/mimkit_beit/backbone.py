"""What fine-tuning makes of BEiT's encoder."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

from mimkit import Backbone, Encoder, Grid, set_drop_path
from mimkit_beit.positions import resample_absolute, resample_relative

_TABLE: Final = "relative_position_bias_table"


class PooledBEiT(Backbone):
    """The mean of the patches' last states, normalised.

    Args:
        vit: a transformer without a final norm, with timm's blocks in ``blocks``, which this
            network owns from now on.
        norm: of the mean; owned likewise.

    Source: BEiT, arXiv 2106.08254, section 2.6; mean of the patches without cls, then a norm, as
        in the fine-tuning code.
    """

    def __init__(self, vit: Encoder, norm: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.fc_norm = norm.requires_grad_(True)
        self.num_features = vit.embed_dim

    def forward(self, image: Tensor) -> Tensor:
        """Gives one vector per image: (B, C, H, W) to (B, D)."""
        pooled: Tensor = self.fc_norm(self.vit(image).patches.mean(dim=1))
        return pooled

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists embedding, every block with its table of positions, norm: depth + 2 groups."""
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
        """Those of the encoder."""
        return frozenset(f"vit.{name}" for name in self.vit.no_weight_decay())


def to_grid(
    tensors: Mapping[str, Tensor], source: Grid, grid: Grid, depth: int
) -> dict[str, Tensor]:
    """Copies an encoder's weights for fine-tuning: on ``grid``, with one table for each block.

    Args:
        tensors: state dict of the encoder.
        source: its grid.
        grid: the grid to fine-tune on.
        depth: number of blocks.
    """
    copied = resampled(tensors, source, grid)
    shared = copied.pop(f"rel_pos_bias.{_TABLE}", None)
    if shared is not None:
        for number in range(depth):
            copied[f"blocks.{number}.attn.{_TABLE}"] = shared.clone()
    return copied


def resampled(tensors: Mapping[str, Tensor], source: Grid, grid: Grid) -> dict[str, Tensor]:
    """Copies an encoder's weights, all positions resampled for another grid.

    Args:
        tensors: state dict of the encoder, or a part of it.
        source: its grid.
        grid: the other one.
    """
    copied = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    if (grid.rows, grid.cols) != (source.rows, source.cols):
        for name, tensor in copied.items():
            if name == "pos_embed":
                copied[name] = resample_absolute(tensor, source, grid)
            elif name.endswith(_TABLE):
                copied[name] = resample_relative(tensor, source, grid)
    return copied
