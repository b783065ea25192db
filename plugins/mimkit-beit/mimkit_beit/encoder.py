"""BEiT's vision transformer (arXiv 2106.08254), on timm's blocks."""

import copy
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from einops import rearrange
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.layers.weight_init import trunc_normal_
from timm.models.beit import RelativePositionBias
from torch import Tensor, nn

from mimkit import (
    Backbone,
    BoundaryError,
    DenseBackbone,
    DenseTransformer,
    Depth,
    Encoder,
    Geometry,
    Grid,
    Multiple,
    Rate,
    Ratio,
    RecipeError,
    Size,
    Stream,
    TimmModel,
    Tokens,
    as_stream,
    patch_attention,
    take,
)
from mimkit_beit.backbone import PooledBEiT, resampled, to_grid
from mimkit_beit.block import Block
from mimkit_beit.positions import absolute_at, relative_at

# Also the bound of the truncation, so that the true deviation is 0.0108.
_INIT_STD: Final = 0.02


class BEiTViT(Encoder):
    """A vision transformer with mask tokens, in all forms that BEiT was released in.

    Its parameters are named as in the released checkpoints, and as in timm's ``Beit``.

    Args:
        geometry: grid and channels of the image.
        embed_dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of a block's MLP, as a multiple of ``embed_dim``.
        positions: "absolute": learned vectors, added to the tokens; "relative": a learned bias of
            the attention, one table for all blocks; "relative_per_block": a table for each, as
            in fine-tuned checkpoints, which needs all of the grid in the encoder.
        layer_scale: initial value of the factors on each residual branch; None or 0 for no
            factors.
        drop_path: rate of stochastic depth of the last block; rises linearly from 0.
        mask_token: have a learned mask token, which maskers in replace mode need.
        final_norm: "tokens": after the last block; "pooled": on the mean of the patches, as in
            fine-tuned checkpoints. Only the backbone pools, so tokens then stay unnormalised.
        num_classes: width of a fine-tuned classifier that is kept for export; 0 for none. It
            reads the normalised mean, or with final_norm = "tokens" the class token.
        stream: what blocks hand on under autocast to bfloat16 (`mimkit.as_stream`).

    Raises: RecipeError if ``num_heads`` does not divide ``embed_dim``.
    Source: BEiT, arXiv 2106.08254, section 2 and appendix. The defaults are the paper's plain
        base model of ImageNet-1k. The checkpoints of ImageNet-22k and the default of the released
        program are positions = "relative" with layer_scale = 0.1 (large: 1e-5). Initialisation as
        in the code: normal with deviation 0.02 cut at +-0.02; the last weight of both branches of
        block l divided by sqrt(2 l).
    """

    miniature: ClassVar[Mapping[str, Any]] = {"embed_dim": 48, "depth": 2, "num_heads": 3}

    def __init__(
        self,
        geometry: Geometry,
        *,
        embed_dim: Size = 768,
        depth: Depth = 12,
        num_heads: Size = 12,
        mlp_ratio: Multiple = 4.0,
        positions: Literal["absolute", "relative", "relative_per_block"] = "absolute",
        layer_scale: Ratio | None = None,
        drop_path: Rate = 0.1,
        mask_token: bool = True,
        final_norm: Literal["tokens", "pooled"] = "tokens",
        num_classes: Annotated[int, Interval(ge=0, le=65_536)] = 0,
        stream: Stream = "float32",
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise RecipeError(
                f"encoder 'beit_vit', num_heads: must divide embed_dim = {embed_dim}, "
                f"but is {num_heads}."
            )
        self.grid = grid = geometry.grid
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.positions = positions
        self.layer_scale = layer_scale
        self.drop_path = drop_path
        self.num_classes = num_classes
        self.stream = stream
        self.takes_hidden = mask_token
        window = (grid.rows, grid.cols)
        self.patch_embed = PatchEmbed(
            grid.image_size, grid.patch_size, geometry.channels, embed_dim
        )
        self.cls_token = _vectors(1, embed_dim)
        self.mask_token = _vectors(1, embed_dim) if mask_token else None
        self.pos_embed = (
            _vectors(1 + grid.num_patches, embed_dim) if positions == "absolute" else None
        )
        self.rel_pos_bias = (
            RelativePositionBias(window, num_heads) if positions == "relative" else None
        )
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                qkv_bias=True,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * number / max(depth - 1, 1),
                init_values=layer_scale,
                window_size=window if positions == "relative_per_block" else None,
            )
            for number in range(depth)
        )
        self.norm = LayerNorm(embed_dim) if final_norm == "tokens" else None  # eps 1e-6
        # What only a fine-tuned network uses is kept, but nothing here trains it.
        self.fc_norm = LayerNorm(embed_dim).requires_grad_(False) if self.norm is None else None
        self.head = nn.Linear(embed_dim, num_classes).requires_grad_(False) if num_classes else None
        self._init_weights()

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``; mask tokens are put in before positions are added.

        A context of all positions is encoded, and given, in the order of the grid.

        Shape: patches (B, S, D), prefix (B, 1, D), index (B, S).
        Raises: BoundaryError if patches are dropped and every block has positions of its own.
        """
        x, bias, index = self._embed(image, context, hidden)
        for block in self.blocks:
            x = block(x, bias)
        return _tokens(x if self.norm is None else self.norm(x), index)

    def at(
        self, image: Tensor, context: Tensor | None, hidden: Tensor | None, wanted: Tensor
    ) -> Tokens:
        """Encodes like `forward`, but the last block computes only the tokens at ``wanted``.

        No other token is read after it, so the others' queries and MLP are spared: about half of
        a block where 75 of 196 patches are predicted.

        Shape: patches (B, W, D), prefix (B, 0, D), index (B, W).
        """
        x, bias, index = self._embed(image, context, hidden)
        last, before = self.blocks[-1], self.blocks[:-1]
        for block in before:
            x = block(x, bias)
        x = last(x, bias, wanted + 1)  # behind the class token
        x = x if self.norm is None else self.norm(x)
        return Tokens(patches=x, prefix=x[:, :0], index=take(index, wanted))

    def layers(self, image: Tensor) -> tuple[Tokens, ...]:
        """Gives the tokens after each block; only the last have passed the final norm.

        Shape: ``depth`` times patches (B, N, D).
        Source: the released linear evaluation reads every block's output as it is, the last too.
        """
        x, bias, index = self._embed(image, None, None)
        outputs = [x := block(x, bias) for block in self.blocks]
        if self.norm is not None:
            outputs[-1] = self.norm(x)
        return tuple(_tokens(output, index) for output in outputs)

    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns a network that pools the patches' mean and normalises it anew.

        The final norm is left out; a norm of the mean that came with fine-tuned weights is kept.
        A shared table of relative positions is copied into every block. For another grid all
        positions are resampled.

        Raises: RecipeError if the grid's patches are of another size.
        """
        vit = self._copy(grid)
        assert vit.fc_norm is not None, "that of final_norm='pooled'"
        norm, vit.fc_norm = vit.fc_norm, None
        return PooledBEiT(vit, norm)

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns a copy of this transformer that gives maps, without the mask token.

        Positions are those that `backbone` has: a table for every block, if they are relative.

        Raises: RecipeError if the grid's patches are of another size.
        """
        vit = self._copy(grid)
        vit.fc_norm = None
        return DenseTransformer(vit, copy.deepcopy(self.norm), vit.grid)

    def _copy(self, grid: Grid | None) -> "BEiTViT":
        """Copies the transformer without final norm and mask token, its positions for ``grid``."""
        grid = self.grid if grid is None else grid
        if grid.patch_size != self.grid.patch_size:
            raise RecipeError(
                "encoder 'beit_vit': the patches of another grid must be "
                f"{self.grid.patch_size} px, but are {grid.patch_size} px."
            )
        weight = self.patch_embed.proj.weight
        with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced below
            vit = BEiTViT(
                Geometry(grid, weight.shape[1]),
                embed_dim=self.embed_dim,
                depth=len(self.blocks),
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                positions="absolute" if self.positions == "absolute" else "relative_per_block",
                layer_scale=self.layer_scale,
                drop_path=self.drop_path,
                mask_token=False,
                final_norm="pooled",
                stream=self.stream,
            )
        own = vit.state_dict()
        moved = to_grid(self.state_dict(), self.grid, grid, len(self.blocks))
        kept = {name: tensor for name, tensor in moved.items() if name in own}
        vit.load_state_dict(own | kept, assign=True)
        return vit.to(weight.device)

    def regrid(self, tensors: Mapping[str, Tensor], grid: Grid) -> Mapping[str, Tensor]:
        """Resamples all learned positions, added ones and tables."""
        return resampled(tensors, grid, self.grid)

    def timm_model(self) -> TimmModel:
        """Says how timm's ``Beit`` gives the same tokens, and the kept classifier's scores."""
        pooled = "token" if self.num_classes else ""
        options = {
            "img_size": list(self.grid.image_size),
            "patch_size": self.grid.patch_size,
            "in_chans": self.patch_embed.proj.in_channels,
            "num_classes": self.num_classes,
            # timm puts the norm behind the pooling if and only if it pools the mean.
            "global_pool": pooled if self.fc_norm is None else "avg",
            "embed_dim": self.embed_dim,
            "depth": len(self.blocks),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "init_values": self.layer_scale or 0.0,  # timm passes over None: its own default
            "use_abs_pos_emb": self.positions == "absolute",
            "use_rel_pos_bias": self.positions == "relative_per_block",
            "use_shared_rel_pos_bias": self.positions == "relative",
        }
        tensors = {k: v for k, v in self.state_dict().items() if k != "mask_token"}
        return TimmModel("beit_base_patch16_224", options, tensors)

    def no_weight_decay(self) -> frozenset[str]:
        """The class token and absolute positions; mask token and tables decay, as released."""
        return frozenset({"pos_embed", "cls_token"})

    def _embed(
        self, image: Tensor, context: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gives what enters the blocks (B, 1 + S, D), their shared bias, and the positions."""
        x = self.patch_embed(image)  # (B, N, D)
        batch_size, num_patches, _ = x.shape
        index = torch.arange(num_patches, device=x.device).expand(batch_size, -1)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()[None]
        places: Tensor | None = self.pos_embed
        if context is not None and context.shape[1] == num_patches:
            if hidden is not None:
                hidden = torch.zeros_like(hidden).scatter(1, context, hidden)
        elif context is not None:
            bias, places = self._positions_at(context)
            x, index = take(x, context), context  # (B, S, D)
        if hidden is not None and self.mask_token is not None:
            x = torch.where(hidden[..., None], self.mask_token, x)
        x = torch.cat([self.cls_token.expand(batch_size, -1, -1), x], dim=1)  # (B, 1 + S, D)
        return as_stream(x if places is None else x + places, self.stream), bias, index

    def _positions_at(self, context: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gives the bias and the added positions of a part of the grid."""
        if self.positions == "relative_per_block":
            raise BoundaryError(
                "encoder 'beit_vit' with positions = 'relative_per_block': all "
                f"{self.grid.num_patches} patches must enter, but {context.shape[1]} did. Use a "
                "masker that replaces patches by mask tokens, or positions = 'relative'."
            )
        places = None if self.pos_embed is None else absolute_at(self.pos_embed, context)
        if self.rel_pos_bias is None:
            return None, places
        table = self.rel_pos_bias.relative_position_bias_table
        rows = self.rel_pos_bias.get_buffer("relative_position_index")
        return relative_at(table, rows, context), places

    def attention(self, image: Tensor) -> Tensor:
        """Gives what the last block's class token looks at, relative positions included.

        Shape: (B, N) float32.
        """
        x, bias, _ = self._embed(image, None, None)
        for block in self.blocks[:-1]:
            x = block(x, bias)
        last: Any = self.blocks[-1]
        attn, rows = last.attn, 2 * self.embed_dim  # of query and key
        joined = F.linear(
            last.norm1(x), attn.qkv.weight[:rows], torch.cat([attn.q_bias, attn.k_bias])
        )
        query, key = rearrange(joined, "b t (two h d) -> two b h t d", two=2, h=self.num_heads)
        if attn.relative_position_bias_table is not None:
            own = attn.relative_position_bias_table[attn.relative_position_index]
            bias = rearrange(own, "query key h -> 1 h query key")
        return patch_attention(query, key, 1, bias)

    @torch.no_grad()
    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                _cut_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for number, block in enumerate(self.blocks, start=1):
            for name in ("attn.proj.weight", "mlp.fc2.weight"):
                block.get_parameter(name).div_(math.sqrt(2 * number))


def _tokens(x: Tensor, index: Tensor) -> Tokens:
    return Tokens(patches=x[:, 1:], prefix=x[:, :1], index=index)


def _vectors(count: int, embed_dim: int) -> nn.Parameter:
    return nn.Parameter(_cut_normal(torch.empty(1, count, embed_dim)))


def _cut_normal(tensor: Tensor) -> Tensor:
    # That of torch draws again and again until all are inside, which took ten times as long.
    drawn: Tensor = trunc_normal_(tensor, std=_INIT_STD, a=-_INIT_STD, b=_INIT_STD)
    return drawn
