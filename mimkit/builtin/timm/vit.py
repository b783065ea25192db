"""A plain vision transformer of timm that drops or hides patches."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from timm.layers.attention import Attention
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from mimkit.builtin.dense import DenseTransformer
from mimkit.errors import RecipeError
from mimkit.parts.attention import patch_attention
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.depth import set_drop_path
from mimkit.parts.encoder import Backbone, Encoder
from mimkit.parts.patches import take
from mimkit.parts.records import Grid, Tokens

_POSITIONS = "model.pos_embed"
_PATCHES = "model.patch_embed.proj.weight"


class TimmViT(Encoder):
    """A ``VisionTransformer`` of timm, of which some patches may enter alone or hidden.

    Args:
        model: without a classifier; this encoder owns it from now on.
        grid: that it was made for.
        mask_token: have a learned vector that hidden patches are shown as.

    Source: timm's ``_pos_embed`` and ``forward_features``, with the choice of patches in between.
    """

    def __init__(self, model: Any, grid: Grid, *, mask_token: bool) -> None:
        super().__init__()
        self.grid = grid
        self.model = model
        self.embed_dim = model.embed_dim
        self.takes_hidden = mask_token
        token = nn.init.trunc_normal_(torch.empty(1, 1, self.embed_dim), std=0.02)
        self.mask_token = nn.Parameter(token) if mask_token else None
        # What only a whole network uses is kept, but pre-training does not train it.
        for unused in (model.fc_norm, model.attn_pool):
            if unused is not None:
                unused.requires_grad_(False)

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``, positions added also to mask tokens."""
        x, index = self._embed(image, context, hidden)
        for block in self.model.blocks:
            x = block(x)
        return self._tokens(self.model.norm(x), index)

    def layers(self, image: Tensor) -> tuple[Tokens, ...]:
        """Gives the tokens after each block; only the last are normalised."""
        x, index = self._embed(image, None, None)
        outputs = [x := block(x) for block in self.model.blocks]
        outputs[-1] = self.model.norm(x)
        return tuple(self._tokens(output, index) for output in outputs)

    def attention(self, image: Tensor) -> Tensor | None:
        """Gives what the last block looks at; None where its attention is no plain one."""
        *before, last = self.model.blocks
        if type(getattr(last, "attn", None)) is not Attention or not hasattr(last, "norm1"):
            return None
        x, _ = self._embed(image, None, None)
        for block in before:
            x = block(x)
        query, key, _ = rearrange(
            last.attn.qkv(last.norm1(x)),
            "b t (three h d) -> three b h t d",
            three=3,
            h=last.attn.num_heads,
        )
        query, key = last.attn.q_norm(query), last.attn.k_norm(key)
        return patch_attention(query, key, self.model.num_prefix_tokens)

    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns the model as timm pools it; for another grid positions are resampled.

        Raises: RecipeError if the grid's patches are of another size.
        """
        return _PooledViT(self._copy(grid).model)

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns a copy that gives maps, with the positions that `backbone` has.

        Raises: RecipeError if the grid's patches are of another size.
        """
        vit = self._copy(grid)
        norm, vit.model.norm = vit.model.norm, nn.Identity()
        for unused in (vit.model.fc_norm, vit.model.attn_pool):
            if unused is not None:
                unused.requires_grad_(False)
        return DenseTransformer(vit, norm, vit.grid, blocks="model.blocks")

    def regrid(self, tensors: Mapping[str, Tensor], grid: Grid) -> Mapping[str, Tensor]:
        """Resamples learned positions, and the projection of patches of another size."""
        moved = dict(tensors)
        side = self.grid.patch_size
        if grid.patch_size != side and _PATCHES in moved:
            moved[_PATCHES] = resample_patch_embed(moved[_PATCHES], [side, side])
        if (grid.rows, grid.cols) != (self.grid.rows, self.grid.cols) and _POSITIONS in moved:
            moved[_POSITIONS] = resample_abs_pos_embed(
                moved[_POSITIONS],
                [self.grid.rows, self.grid.cols],
                [grid.rows, grid.cols],
                num_prefix_tokens=self._placed_prefix,
            )
        return moved

    def units(self) -> list[nn.Module]:
        """Its blocks."""
        return list(self.model.blocks)

    @property
    def _placed_prefix(self) -> int:
        """How many prefix tokens have a position."""
        return 0 if self.model.no_embed_class else self.model.num_prefix_tokens

    def _copy(self, grid: Grid | None) -> "TimmViT":
        vit = copy.deepcopy(self)
        vit.mask_token = None
        if grid is None or grid == self.grid:
            return vit
        if grid.patch_size != self.grid.patch_size:
            raise RecipeError(
                f"encoder 'timm': the patches of another grid must be {self.grid.patch_size} px, "
                f"but are {grid.patch_size} px."
            )
        vit.grid = grid
        if vit.model.pos_embed is not None:
            moved = vit.regrid({_POSITIONS: vit.model.pos_embed.detach()}, self.grid)
            vit.model.pos_embed = nn.Parameter(moved[_POSITIONS])
        vit.model.patch_embed.set_input_size(grid.image_size)
        return vit

    def _embed(
        self, image: Tensor, context: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gives what enters the first block, (B, R + S, D), and the positions (B, S)."""
        model = self.model
        x = model.patch_embed(image)  # (B, N, D)
        batch_size, num_patches, _ = x.shape
        places = None if model.pos_embed is None else model.pos_embed[0, -num_patches:]
        if context is None:
            context = torch.arange(num_patches, device=image.device).expand(batch_size, -1)
        else:
            x = take(x, context)  # (B, S, D)
        if hidden is not None and self.mask_token is not None:
            x = torch.where(hidden[..., None], self.mask_token, x)
        if places is not None:
            x = x + nn.functional.embedding(context, places)
        prefix = [token for token in (model.cls_token, model.reg_token) if token is not None]
        if prefix:
            tokens = torch.cat(prefix, dim=1)  # (1, R, D)
            if self._placed_prefix and places is not None:
                tokens = tokens + model.pos_embed[:, : self._placed_prefix]
            x = torch.cat([tokens.expand(batch_size, -1, -1), x], dim=1)  # (B, R + S, D)
        return model.norm_pre(model.pos_drop(x)), context

    def _tokens(self, x: Tensor, index: Tensor) -> Tokens:
        count = self.model.num_prefix_tokens
        return Tokens(patches=x[:, count:], prefix=x[:, :count], index=index)

    def no_weight_decay(self) -> frozenset[str]:
        """What timm exempts, and the mask token."""
        return frozenset({"mask_token", *(f"model.{n}" for n in self.model.no_weight_decay())})


class _PooledViT(Backbone):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        self.num_features = model.head_hidden_size

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = self.model(image)
        return pooled

    def layer_groups(self) -> list[list[nn.Parameter]]:
        named = dict(self.model.named_parameters())
        closing = [p for n, p in named.items() if n.startswith(("norm.", "fc_norm.", "attn_pool."))]
        blocks = [list(block.parameters()) for block in self.model.blocks]
        taken = {id(parameter) for group in (closing, *blocks) for parameter in group}
        return [[p for p in named.values() if id(p) not in taken], *blocks, closing]

    def set_drop_path(self, rate: float) -> None:
        blocks = list(self.model.blocks)
        if not all(hasattr(block, "drop_path1") for block in blocks):
            super().set_drop_path(rate)
        set_drop_path(blocks, rate)

    def no_weight_decay(self) -> frozenset[str]:
        return frozenset(f"model.{name}" for name in self.model.no_weight_decay())
