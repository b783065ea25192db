"""CAE's vision transformer (arXiv 2202.03026, section 3.1), on timm's blocks."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from mimkit import (
    Backbone,
    DenseBackbone,
    Depth,
    Encoder,
    Geometry,
    Grid,
    Module,
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
    sincos,
    take,
)
from mimkit_cae.backbone import DenseCAE, PooledCAE
from mimkit_cae.block import Block
from mimkit_cae.initialisation import Init, initialise, rescale, special_token


class CAEViT(Encoder):
    """A vision transformer that only ever sees the visible patches, and a class token.

    Its parameters are named as in the released checkpoints. Fixed 2-D sine-cosine positions, no
    relative ones; patches that do not enter are not even projected.

    Args:
        geometry: grid and channels of the image.
        embed_dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of a block's MLP, as a multiple of ``embed_dim``.
        layer_scale: initial value of the factors on each residual branch; None or 0 for no
            factors. The paper's large model has 1e-5.
        drop_path: rate of stochastic depth of the last block; rises linearly from 0.
        init: start values, "xavier" as the base model or "beit" with rescaled branches.
        stream: what blocks hand on under autocast to bfloat16 (`mimkit.as_stream`).

    Raises: RecipeError if ``num_heads`` does not divide ``embed_dim``, or 4 does not.
    Source: CAE, arXiv 2202.03026, section 3.1 and appendix; start values as in the released code,
        which has both. The class token is decayed like any weight, as released.
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
        layer_scale: Ratio | None = 0.1,
        drop_path: Rate = 0.1,
        init: Init = "xavier",
        stream: Stream = "float32",
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise RecipeError(
                f"encoder 'cae_vit', num_heads: must divide embed_dim = {embed_dim}, "
                f"but is {num_heads}."
            )
        if embed_dim % 4:
            raise RecipeError(
                "encoder 'cae_vit', embed_dim: must be a multiple of 4 for sine-cosine positions, "
                f"but is {embed_dim}."
            )
        self.grid = geometry.grid
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.layer_scale = layer_scale
        self.drop_path = drop_path
        self.stream = stream
        self.patch_embed = PatchEmbedding(geometry, embed_dim)
        self.cls_token = special_token(embed_dim)
        self.register_buffer("pos_embed", positions(geometry.grid, embed_dim))
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
        self.norm: nn.Module = LayerNorm(embed_dim)  # eps 1e-6
        initialise(self, init)
        if init == "beit":
            rescale(self.blocks, "attn.proj.weight", "mlp.fc2.weight")

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``; there are no mask tokens, so none may be hidden.

        Shape: patches (B, S, D), prefix (B, 1, D), index (B, S).
        """
        x, index = self._embed(image, context)
        for block in self.blocks:
            x = block(x)
        return _tokens(self.norm(x), index)

    def layers(self, image: Tensor) -> tuple[Tokens, ...]:
        """Gives the tokens after each block; only the last are normalised.

        Shape: ``depth`` times patches (B, N, D).
        """
        x, index = self._embed(image, None)
        outputs = [x := block(x) for block in self.blocks]
        outputs[-1] = self.norm(x)
        return tuple(_tokens(output, index) for output in outputs)

    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns a network that pools the patches' mean and normalises it.

        That norm starts as a copy of the final norm, which is left out; every block gets a table
        of relative positions that starts at zero. On another grid the fixed positions are made
        anew.

        Raises: RecipeError if the grid's patches are of another size.
        """
        vit, norm = self._split(grid)
        return PooledCAE(vit, norm, vit.grid)

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns a copy of this transformer that gives maps.

        Positions are those that `backbone` has: fixed ones, and tables that start at zero.

        Raises: RecipeError if the grid's patches are of another size.
        """
        vit, norm = self._split(grid)
        return DenseCAE(vit, norm, vit.grid)

    def _split(self, grid: Grid | None) -> tuple["CAEViT", nn.Module]:
        """Copies the transformer, without its norm and for ``grid``, and the norm."""
        grid = self.grid if grid is None else grid
        if grid.patch_size != self.grid.patch_size:
            raise RecipeError(
                "encoder 'cae_vit': the patches of another grid must be "
                f"{self.grid.patch_size} px, but are {grid.patch_size} px."
            )
        vit = copy.deepcopy(self)
        vit.grid = grid
        vit.pos_embed = positions(grid, self.embed_dim).to(self.pos_embed)
        norm, vit.norm = vit.norm, nn.Identity()
        return vit, norm

    def regrid(self, tensors: Mapping[str, Tensor], grid: Grid) -> Mapping[str, Tensor]:
        """Leaves the fixed positions out, which are this encoder's own."""
        return {name: tensor for name, tensor in tensors.items() if name != "pos_embed"}

    def timm_model(self) -> TimmModel:
        """Says how timm's ``VisionTransformer`` gives the same tokens.

        It adds a bias to the keys, which CAE has not: zero, and attention does not change with it.
        """
        options = {
            "img_size": list(self.grid.image_size),
            "patch_size": self.grid.patch_size,
            "in_chans": self.patch_embed.proj.in_channels,
            "embed_dim": self.embed_dim,
            "depth": len(self.blocks),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "init_values": self.layer_scale or None,
            "class_token": True,
            "global_pool": "avg",
            "fc_norm": False,  # so that tokens are normalised, as here
            "num_classes": 0,
        }
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            stem, _, last = name.rpartition(".")
            if last == "q_bias":
                value = self.get_parameter(f"{stem}.v_bias").detach()
                tensors[f"{stem}.qkv.bias"] = torch.cat([tensor, torch.zeros_like(value), value])
            elif last in ("gamma_1", "gamma_2"):
                tensors[f"{stem}.ls{last[-1]}.gamma"] = tensor
            elif last != "v_bias":
                tensors[name] = tensor
        return TimmModel("vit_base_patch16_224", options, tensors)

    def _embed(self, image: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gives what enters the blocks (B, 1 + S, D), and the positions (B, S)."""
        x = self.patch_embed(image, context)  # (B, S, D)
        if context is None:
            context = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        # The class token stands nowhere: its position is zero.
        x = x + F.embedding(context, self.pos_embed[0, 1:])
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return as_stream(x, self.stream), context

    def attention(self, image: Tensor) -> Tensor:
        """Gives what the last block's class token looks at.

        Shape: (B, N) float32.
        """
        x, _ = self._embed(image, None)
        for block in self.blocks[:-1]:
            x = block(x)
        last: Any = self.blocks[-1]
        attn, rows = last.attn, 2 * self.embed_dim  # of query and key, which has no bias
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias)])
        joined = F.linear(last.norm1(x), attn.qkv.weight[:rows], bias)
        query, key = rearrange(joined, "b t (two h d) -> two b h t d", two=2, h=self.num_heads)
        return patch_attention(query, key, 1)

    if TYPE_CHECKING:
        pos_embed: Tensor


class PatchEmbedding(Module):
    """Projects patches to the width of the tokens, and only those that enter.

    The pass over the visible patches and the one over the masked cost together what one
    projection of the whole image does.

    Args:
        geometry: grid and channels of the image.
        embed_dim: D.
    """

    def __init__(self, geometry: Geometry, embed_dim: int) -> None:
        super().__init__()
        patch_size = geometry.grid.patch_size
        # Holds the weights in the shape in which they are published; it is applied as a matrix.
        self.proj = nn.Conv2d(geometry.channels, embed_dim, patch_size, patch_size)

    def forward(self, image: Tensor, context: Tensor | None) -> Tensor:
        """Projects the patches at ``context``, or all.

        Shape: image (B, C, H, W), context (B, S) int64; result (B, S, D).
        """
        weight = self.proj.weight  # (D, C, P, P)
        patches = rearrange(
            image,
            "b c (rows p) (cols q) -> b (rows cols) (c p q)",
            p=weight.shape[2],
            q=weight.shape[3],
        )
        if context is not None:
            patches = take(patches, context)  # (B, S, C * P * P)
        return F.linear(patches, weight.flatten(1), self.proj.bias)


def positions(grid: Grid, embed_dim: int) -> Tensor:
    """Gives the fixed positions of class token and patches, (1, 1 + N, D) float32.

    Source: CAE's code; the quarters are [sin row, cos row, sin col, cos col].
    """
    return F.pad(sincos(grid, embed_dim), (0, 0, 1, 0))[None]


def _tokens(x: Tensor, index: Tensor) -> Tokens:
    return Tokens(patches=x[:, 1:], prefix=x[:, :1], index=index)
