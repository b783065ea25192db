"""Encoder ``timm``: any plain vision transformer or ResNet of timm, by its name."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mimkit.builtin.timm.models import make_model, model_options
from mimkit.builtin.timm.resnet import TimmResNet
from mimkit.builtin.timm.vit import TimmViT
from mimkit.parts.bounds import Rate
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.encoder import Backbone, Encoder, TimmModel
from mimkit.parts.records import Geometry, Grid, Tokens

_OWN = "encoder."
"""Begins the names of all weights."""


class TimmEncoder(Encoder):
    """A vision transformer or ResNet of timm, with random weights unless a run starts from others.

    A transformer has the patches of ``[data]``, whatever its name says. A ResNet sees all patches;
    the token of each is what the last map, resampled to the grid, holds there.

    Args:
        geometry: grid and channels of the image.
        model: a name of `timm.list_models`, with or without the tag of weights.
        mask_token: have a learned mask token, or for a ResNet a learned patch of pixels, which
            maskers in replace mode need.
        drop_path: rate of stochastic depth of the last block; rises linearly from 0.

    Raises: RecipeError if timm has no such model, or it is neither a plain ViT nor a ResNet.
    Source: timm's ``VisionTransformer`` and ``ResNet``; masks as in MAE, arXiv 2111.06377 (drop),
        and SimMIM, arXiv 2111.09886 (replace). Pooling is the model's own.
    """

    miniature: ClassVar[Mapping[str, Any]] = {"model": "test_vit", "mask_token": True}

    def __init__(
        self,
        geometry: Geometry,
        *,
        model: str = "vit_small_patch16_224",
        mask_token: bool = False,
        drop_path: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.model_options = model_options(model, geometry, drop_path)
        made = make_model(self.model_options)
        grid = geometry.grid
        self.encoder: TimmViT | TimmResNet = (
            TimmViT(made, grid, mask_token=mask_token)
            if "img_size" in self.model_options
            else TimmResNet(made, grid, geometry.channels, mask_token=mask_token)
        )
        self.embed_dim = self.encoder.embed_dim
        self.takes_hidden = mask_token

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``.

        Shape: patches (B, S, D), prefix (B, R, D), index (B, S).
        Raises: BoundaryError if a ResNet is not given all patches.
        """
        return self.encoder(image, context, hidden)

    def features(self, image: Tensor) -> Tokens:
        """Gives the tokens of the whole image; of a ResNet the cells of its last map.

        Shape: patches (B, T, D).
        """
        return self.encoder.features(image)

    def layers(self, image: Tensor) -> tuple[Tokens, ...]:
        """Gives the tokens after each block, of which only the last are normalised.

        Of a ResNet there is the last map alone.
        """
        return self.encoder.layers(image)

    def attention(self, image: Tensor) -> Tensor | None:
        """Gives what a transformer's last block looks at.

        Shape: (B, N) float32.
        """
        return self.encoder.attention(image)

    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns the whole model, with timm's own pooling.

        Raises: RecipeError if the grid's patches are of another size.
        """
        return self.encoder.backbone(grid)

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns four maps: of one stride, or of a ResNet's stages.

        Raises: RecipeError if the grid's patches are of another size.
        """
        return self.encoder.dense(grid)

    def regrid(self, tensors: Mapping[str, Tensor], grid: Grid) -> Mapping[str, Tensor]:
        """Resamples learned positions, and the projection of patches of another size."""
        bare = {name.removeprefix(_OWN): tensor for name, tensor in tensors.items()}
        return {f"{_OWN}{name}": t for name, t in self.encoder.regrid(bare, grid).items()}

    def timm_model(self) -> TimmModel:
        """See `Encoder.timm_model`."""
        options = dict(self.model_options)
        name, _, _ = options.pop("model_name").partition(".")  # without the tag of its weights
        return TimmModel(name, options, self.encoder.model.state_dict())
