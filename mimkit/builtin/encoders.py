"""The plain vision transformer, on timm's blocks."""

import copy
from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.builtin.dense import DenseTransformer
from mimkit.builtin.positions import sincos
from mimkit.errors import RecipeError
from mimkit.parts.attention import patch_attention
from mimkit.parts.bounds import Depth, Multiple, Rate, Ratio, Size
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.depth import set_drop_path
from mimkit.parts.encoder import Backbone, Encoder, TimmModel
from mimkit.parts.patches import take
from mimkit.parts.records import Geometry, Grid, Tokens
from mimkit.parts.stream import Stream, as_stream

_PATCHES: Final = "patch_embed.proj.weight"


class ViT(Encoder):
    """A vision transformer that encodes all patches, or only the visible ones.

    Its parameters are named as in timm's ``VisionTransformer``.

    Args:
        geometry: grid and channels of the image.
        embed_dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of a block's MLP, as a multiple of ``embed_dim``.
        positions: absolute position embeddings, learned or fixed 2-D sine-cosine; the latter with
            the row's waves first, or with the column's ("sincos_cols").
        class_token: prepend a learned class token.
        mask_token: have a learned mask token, which maskers in replace mode need.
        layer_scale: initial value of the factors on each residual branch; None for no factors.
        drop_path: rate of stochastic depth of the last block; rises linearly from 0.
        pool: what the backbone gives: the mean of the patches, or the class token.
        final_norm: "tokens": after the last block; "pooled": on the mean of the patches, as in
            fine-tuned checkpoints. Only the backbone pools, so tokens then stay unnormalised.
        stream: what blocks hand on under autocast to bfloat16 (`mimkit.as_stream`).

    Raises: RecipeError if the widths do not divide, the class token to pool is missing, or it
        should be pooled with a norm of the mean.
    Source: ViT, arXiv 2010.11929; drop mode MAE, arXiv 2111.06377; replace mode BEiT,
        arXiv 2106.08254. The mean is taken after the final norm (MAE: norm after the mean).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        embed_dim: Size = 192,
        depth: Depth = 12,
        num_heads: Size = 3,
        mlp_ratio: Multiple = 4.0,
        positions: Literal["learned", "sincos", "sincos_cols"] = "sincos",
        class_token: bool = True,
        mask_token: bool = False,
        layer_scale: Ratio | None = None,
        drop_path: Rate = 0.0,
        pool: Literal["mean", "cls"] = "mean",
        final_norm: Literal["tokens", "pooled"] = "tokens",
        stream: Stream = "float32",
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise RecipeError(
                f"encoder 'vit', num_heads: must divide embed_dim = {embed_dim}, "
                f"but is {num_heads}."
            )
        if pool == "cls" and not class_token:
            raise RecipeError(
                "encoder 'vit', pool: 'cls' needs class_token = true, but it is false."
            )
        if pool == "cls" and final_norm == "pooled":
            raise RecipeError(
                "encoder 'vit', pool: must be 'mean' with final_norm = 'pooled', but is 'cls'."
            )
        self.grid = grid = geometry.grid
        self.embed_dim = embed_dim
        self.positions = positions
        self.takes_hidden = mask_token
        self.pool = pool
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.layer_scale = layer_scale
        self.stream = stream
        self.num_prefix = int(class_token)
        self.patch_embed = PatchEmbed(
            grid.image_size, grid.patch_size, geometry.channels, embed_dim
        )
        self.cls_token = _token(embed_dim) if class_token else None
        self.mask_token = _token(embed_dim) if mask_token else None
        if positions == "learned":
            table = torch.empty(1, self.num_prefix + grid.num_patches, embed_dim)
            self.pos_embed: Tensor = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        else:
            self.register_buffer("pos_embed", self._fixed(grid))
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias=True,
                init_values=layer_scale,
                drop_path=rate,
                norm_layer=LayerNorm,  # eps 1e-6
            )
            for rate in (drop_path * number / max(depth - 1, 1) for number in range(depth))
        )
        self.norm_pools = final_norm == "pooled"
        # What only a fine-tuned network uses is kept, but pre-training does not train it.
        self.norm: nn.Module = LayerNorm(embed_dim).requires_grad_(not self.norm_pools)
        self.apply(_init_weights)

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``, positions added also to mask tokens.

        Shape: patches (B, S, D), prefix (B, 0 or 1, D), index (B, S).
        """
        x, index = self._embed(image, context, hidden)
        for block in self.blocks:
            x = as_stream(block(x), self.stream)
        return self._tokens(x if self.norm_pools else self.norm(x), index)

    def layers(self, image: Tensor) -> tuple[Tokens, ...]:
        """Gives the tokens after each block; only the last are normalised.

        Shape: ``depth`` times patches (B, N, D).
        """
        x, index = self._embed(image, None, None)
        outputs = [x := as_stream(block(x), self.stream) for block in self.blocks]
        outputs[-1] = x if self.norm_pools else self.norm(x)
        return tuple(self._tokens(output, index) for output in outputs)

    def attention(self, image: Tensor) -> Tensor:
        """Gives what the last block's class token, or the mean over patches, looks at.

        Shape: (B, N) float32.
        """
        x, _ = self._embed(image, None, None)
        for block in self.blocks[:-1]:
            x = as_stream(block(x), self.stream)
        last: Any = self.blocks[-1]
        joined = last.attn.qkv(last.norm1(x))  # (B, T, 3 D)
        query, key, _ = rearrange(
            joined, "b t (three h d) -> three b h t d", three=3, h=self.num_heads
        )
        return patch_attention(query, key, self.num_prefix)

    def _embed(
        self, image: Tensor, context: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gives what enters the first block, (B, R + S, D), and the positions (B, S)."""
        x = self.patch_embed(image)  # (B, N, D)
        batch_size, num_patches, _ = x.shape
        if context is None:
            context = torch.arange(num_patches, device=image.device).expand(batch_size, -1)
        else:
            x = take(x, context)  # (B, S, D)
        if hidden is not None and self.mask_token is not None:
            x = torch.where(hidden[..., None], self.mask_token, x)
        x = x + F.embedding(context, self.pos_embed[0, self.num_prefix :])
        if self.cls_token is not None:
            cls_token = self.cls_token + self.pos_embed[:, :1]
            x = torch.cat([cls_token.expand(batch_size, -1, -1), x], dim=1)  # (B, 1 + S, D)
        return as_stream(x, self.stream), context

    def _tokens(self, x: Tensor, index: Tensor) -> Tokens:
        return Tokens(patches=x[:, self.num_prefix :], prefix=x[:, : self.num_prefix], index=index)

    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns a copy of this transformer with its pooling, without the mask token.

        For another grid learned positions are resampled (bicubic), fixed ones made anew.

        Raises: RecipeError if the grid's patches are of another size.
        """
        return _PooledViT(self._copy(grid))

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns a copy of this transformer that gives maps, without the mask token.

        Positions are those that `backbone` has.

        Raises: RecipeError if the grid's patches are of another size.
        """
        vit = self._copy(grid)
        norm, vit.norm = vit.norm, nn.Identity()
        return DenseTransformer(vit, None if vit.norm_pools else norm, vit.grid)

    def regrid(self, tensors: Mapping[str, Tensor], grid: Grid) -> Mapping[str, Tensor]:
        """Resamples learned positions and the projection of patches; fixed ones are made anew."""
        moved, mine = dict(tensors), self.grid
        if grid.patch_size != mine.patch_size and _PATCHES in moved:
            moved[_PATCHES] = resample_patch_embed(moved[_PATCHES], [mine.patch_size] * 2)
        if (grid.rows, grid.cols) == (mine.rows, mine.cols) or "pos_embed" not in moved:
            return moved
        table = moved.pop("pos_embed")
        if self.positions == "learned":
            moved["pos_embed"] = resample_abs_pos_embed(
                table,
                [mine.rows, mine.cols],
                [grid.rows, grid.cols],
                num_prefix_tokens=self.num_prefix,
            )
        return moved

    def timm_model(self) -> TimmModel:
        """Says how timm's ``VisionTransformer`` gives the same tokens."""
        options = {
            "img_size": list(self.grid.image_size),
            "patch_size": self.grid.patch_size,
            "in_chans": self.patch_embed.proj.in_channels,
            "embed_dim": self.embed_dim,
            "depth": len(self.blocks),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "init_values": self.layer_scale,
            "class_token": self.cls_token is not None,
            "global_pool": {"mean": "avg", "cls": "token"}[self.pool],
            "fc_norm": self.norm_pools,
            "num_classes": 0,
        }
        norm = "fc_norm." if self.norm_pools else "norm."
        tensors = {
            f"{norm}{k.removeprefix('norm.')}" if k.startswith("norm.") else k: v
            for k, v in self.state_dict().items()
            if k != "mask_token"
        }
        return TimmModel("vit_base_patch16_224", options, tensors)

    def _copy(self, grid: Grid | None) -> "ViT":
        vit = copy.deepcopy(self)
        vit.mask_token = None
        if grid is not None and grid != self.grid:
            vit._move_to(grid)
        return vit

    def _move_to(self, grid: Grid) -> None:
        if grid.patch_size != self.grid.patch_size:
            raise RecipeError(
                f"encoder 'vit': the patches of another grid must be {self.grid.patch_size} px, "
                f"but are {grid.patch_size} px."
            )
        if isinstance(self.pos_embed, nn.Parameter):
            moved = resample_abs_pos_embed(
                self.pos_embed.detach(),
                [grid.rows, grid.cols],
                [self.grid.rows, self.grid.cols],
                num_prefix_tokens=self.num_prefix,
            )
            self.pos_embed = nn.Parameter(moved)
        else:
            self.pos_embed = self._fixed(grid).to(self.pos_embed)
        self.patch_embed.set_input_size(grid.image_size)
        self.grid = grid

    def _fixed(self, grid: Grid) -> Tensor:
        """Gives the fixed positions, (1, R + N, D)."""
        table = sincos(grid, self.embed_dim, "cols" if self.positions == "sincos_cols" else "rows")
        # The class token stands nowhere: its position is zero.
        return F.pad(table, (0, 0, self.num_prefix, 0))[None]

    def no_weight_decay(self) -> frozenset[str]:
        """Positions and special tokens are left alone, as in timm."""
        return frozenset({"pos_embed", "cls_token", "mask_token"})


class _PooledViT(Backbone):
    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit
        vit.norm.requires_grad_(True)
        self.num_features = vit.embed_dim

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.vit(image)
        if self.vit.pool == "cls":
            return tokens.prefix[:, 0]
        mean = tokens.patches.mean(dim=1)
        return self.vit.norm(mean) if self.vit.norm_pools else mean

    def layer_groups(self) -> list[list[nn.Parameter]]:
        vit = self.vit
        embedding = [vit.cls_token, vit.pos_embed, *vit.patch_embed.parameters()]
        return [
            [parameter for parameter in embedding if isinstance(parameter, nn.Parameter)],
            *(list(block.parameters()) for block in vit.blocks),
            list(vit.norm.parameters()),
        ]

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth of every block, rising linearly from 0 to ``rate``."""
        set_drop_path(self.vit.blocks, rate)

    def no_weight_decay(self) -> frozenset[str]:
        return frozenset(f"vit.{name}" for name in self.vit.no_weight_decay())


def _token(embed_dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dim), std=0.02))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
