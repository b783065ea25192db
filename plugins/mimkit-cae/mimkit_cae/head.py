"""CAE's head: regressor, decoder, linear layers. Source: arXiv 2202.03026, section 3.1."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch.nn.functional as F
from annotated_types import Interval
from einops import rearrange
from torch import Tensor, nn

from mimkit import (
    Depth,
    Geometry,
    Head,
    Mask,
    Multiple,
    Rate,
    Ratio,
    RecipeError,
    Size,
    Stream,
    Tokens,
    Width,
    sincos,
)
from mimkit_cae.decoder import Decoder
from mimkit_cae.initialisation import Init, initialise, rescale
from mimkit_cae.projection import Projection
from mimkit_cae.regressor import Regressor


class CAEHead(Head):
    """Regresses the latents of the masked patches, and decodes them to whatever is asked for.

    The prediction called ``latent`` is the regressor's output itself; every other one, classes
    or vectors, is a linear layer on the decoder's output. Each target group is predicted on its
    own.

    Args:
        geometry: grid, the encoder's width, and the predictions to make.
        embed_dim: width of regressor and decoder; None: the encoder's. Another than the encoder's
            has a linear layer and a norm before it, which the latent's target passes too.
        depth_regressor: blocks of the regressor.
        depth_decoder: blocks of the decoder; 0: the linear layers read the regressor's output.
        num_heads: attention heads of every block.
        mlp_ratio: width of every block's MLP, as a multiple of ``embed_dim``.
        layer_scale: initial value of the factors on each residual branch; None or 0 for no
            factors. The paper's large model has 1e-5.
        drop_path: rate of stochastic depth of the last block of either; rises linearly from 0.
        init: start values, "xavier" as the base model or "beit" with rescaled branches, which
            leaves torch's own to the layer between two widths, as released.
        stream: what blocks hand on under autocast to bfloat16 (`mimkit.as_stream`).
        latent: name of the prediction that is the regressor's output; it need not be asked for.
            None: all are decoded, so that a target of the encoder's width may be decoded too.

    Raises: RecipeError if the head does not fit the encoder, or the latent its target.
    Source: CAE, arXiv 2202.03026, sections 3.1 to 3.3; arithmetic, widths and start values as in
        the released code, mask token decayed like any weight. With depth_decoder = 0 one release
        still adds positions and a norm; here, as in another, nothing stands between.
    """

    miniature: ClassVar[Mapping[str, Any]] = {"depth_regressor": 2, "depth_decoder": 1}

    def __init__(
        self,
        geometry: Geometry,
        *,
        embed_dim: Size | None = None,
        depth_regressor: Depth = 4,
        depth_decoder: Annotated[int, Interval(ge=0, le=256)] = 4,
        num_heads: Size = 12,
        mlp_ratio: Multiple = 4.0,
        layer_scale: Ratio | None = 0.1,
        drop_path: Rate = 0.1,
        init: Init = "xavier",
        stream: Stream = "float32",
        latent: str | None = "latent",
    ) -> None:
        super().__init__()
        embed_dim = geometry.embed_dim if embed_dim is None else embed_dim
        if embed_dim % num_heads:
            whose = "the encoder's width" if embed_dim == geometry.embed_dim else "embed_dim ="
            raise RecipeError(
                f"head 'cae', num_heads: must divide {whose} {embed_dim}, but is {num_heads}."
            )
        if embed_dim % 4:
            raise RecipeError(
                "head 'cae', embed_dim: must be a multiple of 4 for sine-cosine positions, but is "
                f"{embed_dim}."
            )
        decoded = dict(geometry.outputs)
        width = None if latent is None else decoded.pop(latent, None)
        if width is not None and (width.kind, width.size) != ("vector", geometry.embed_dim):
            raise RecipeError(
                f"head 'cae', latent: the prediction '{latent}' is the regressor's output, so its "
                f"target must be a vector of {geometry.embed_dim}, but it is a {width.kind} of "
                f"{width.size}. Use target 'latent', or call the prediction something else."
            )
        self.latent = latent if width is not None else None
        self.projection: Projection | None = None
        self.regressor = Regressor(
            embed_dim,
            depth_regressor,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            drop_path=drop_path,
            stream=stream,
        )
        self.decoder: Decoder | None = None
        if decoded and depth_decoder:
            self.decoder = Decoder(
                embed_dim,
                depth_decoder,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=drop_path,
                stream=stream,
            )
        self.predictors = nn.ModuleDict(
            {name: nn.Linear(embed_dim, width.size) for name, width in decoded.items()}
        )
        self.register_buffer("positions", sincos(geometry.grid, embed_dim), persistent=False)
        initialise(self, init)
        if embed_dim != geometry.embed_dim:
            self.projection = Projection(geometry.embed_dim, embed_dim)
            if init == "xavier":
                initialise(self.projection, init)
            if self.latent is not None:
                self.own_widths = {self.latent: Width("vector", embed_dim)}
        if init == "beit":
            rescale(self.regressor.blocks, "cross_attn.proj.weight", "mlp_cross.fc2.weight")
            if self.decoder is not None:
                rescale(self.decoder.blocks, "attn.proj.weight", "mlp.fc2.weight")

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Predicts at the targets from the visible patches; the class token plays no part.

        Shape: each (B, G, M, K).
        """
        num_groups = mask.target.shape[1]
        visible, index = tokens.patches, tokens.index
        if self.projection is not None:
            visible = self.projection(visible)  # (B, S, E)
        if num_groups > 1:
            visible = visible.repeat_interleave(num_groups, dim=0)  # (B * G, S, E)
            index = index.repeat_interleave(num_groups, dim=0)  # (B * G, S)
        positions = F.embedding(mask.target.flatten(0, 1), self.positions)  # (B * G, M, E)
        latent = self.regressor(visible, F.embedding(index, self.positions), positions)
        decoded = latent if self.decoder is None else self.decoder(latent, positions)
        found = {name: predict(decoded) for name, predict in self.predictors.items()}
        if self.latent is not None:
            found[self.latent] = latent
        return {
            name: rearrange(value, "(b g) m k -> b g m k", g=num_groups)
            for name, value in found.items()
        }

    def translate(self, prediction: str, target: Tensor) -> Tensor:
        """Projects what the encoder says of the targets as what it says of visible patches.

        Shape: (B, G, M, D) to (B, G, M, E).
        """
        return target if self.projection is None else self.projection.held(target)

    if TYPE_CHECKING:
        positions: Tensor
