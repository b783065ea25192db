"""The plain vision transformer, on timm's blocks."""

import copy
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.builtin.positions import sincos
from mimkit.errors import RecipeError
from mimkit.parts.base import Backbone, Encoder
from mimkit.parts.patches import take
from mimkit.parts.records import Geometry, Tokens


class ViT(Encoder):
    """A vision transformer that encodes all patches, or only the visible ones.

    Its parameters are named as in timm's ``VisionTransformer``.

    Args:
        geometry: grid and channels of the image.
        embed_dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of a block's MLP, as a multiple of ``embed_dim``.
        positions: absolute position embeddings, learned or fixed 2-D sine-cosine.
        class_token: prepend a learned class token.
        mask_token: have a learned mask token, which maskers in replace mode need.
        layer_scale: initial value of the factors on each residual branch; None for no factors.
        drop_path: rate of stochastic depth of the last block; rises linearly from 0.
        pool: what the backbone gives: the mean of the patches, or the class token.

    Raises: RecipeError if the widths do not divide, or the class token to pool is missing.
    Source: ViT, arXiv 2010.11929; drop mode MAE, arXiv 2111.06377; replace mode BEiT,
        arXiv 2106.08254. The mean is taken after the final norm (MAE: norm after the mean).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        positions: Literal["learned", "sincos"] = "sincos",
        class_token: bool = True,
        mask_token: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        pool: Literal["mean", "cls"] = "mean",
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
        grid = geometry.grid
        self.embed_dim = embed_dim
        self.takes_hidden = mask_token
        self.pool = pool
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
            # The class token stands nowhere: its position is zero.
            table = F.pad(sincos(grid, embed_dim), (0, 0, self.num_prefix, 0))
            self.register_buffer("pos_embed", table[None])
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
        self.norm = LayerNorm(embed_dim)
        self.apply(_init_weights)

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``, positions added also to mask tokens.

        Shape: patches (B, S, D), prefix (B, 0 or 1, D), index (B, S).
        """
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
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Tokens(
            patches=x[:, self.num_prefix :], prefix=x[:, : self.num_prefix], index=context
        )

    def backbone(self) -> Backbone:
        """Returns a copy of this transformer with its pooling, without the mask token."""
        return _PooledViT(copy.deepcopy(self))

    def no_weight_decay(self) -> frozenset[str]:
        """Positions and special tokens are left alone, as in timm."""
        return frozenset({"pos_embed", "cls_token", "mask_token"})

    if TYPE_CHECKING:
        __call__ = forward


class _PooledViT(Backbone):
    def __init__(self, vit: ViT) -> None:
        super().__init__()
        vit.mask_token = None
        self.vit = vit
        self.num_features = vit.embed_dim

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.vit(image)
        if self.vit.pool == "cls":
            return tokens.prefix[:, 0]
        return tokens.patches.mean(dim=1)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        vit = self.vit
        embedding = [vit.cls_token, vit.pos_embed, *vit.patch_embed.parameters()]
        return [
            [parameter for parameter in embedding if isinstance(parameter, nn.Parameter)],
            *(list(block.parameters()) for block in vit.blocks),
            list(vit.norm.parameters()),
        ]

    def no_weight_decay(self) -> frozenset[str]:
        return frozenset(f"vit.{name}" for name in self.vit.no_weight_decay())

    if TYPE_CHECKING:
        __call__ = forward


def _token(embed_dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dim), std=0.02))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
