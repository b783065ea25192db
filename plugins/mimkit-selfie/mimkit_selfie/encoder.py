"""The patch network P of Selfie (arXiv 1906.02940): a ResNet that sees one patch at a time."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from einops import rearrange
from torch import Tensor, nn

from mimkit import (
    Backbone,
    DenseBackbone,
    Depth,
    Encoder,
    Geometry,
    Grid,
    RecipeError,
    TimmModel,
    Tokens,
    patchify,
    take,
)
from mimkit_selfie.dense import DenseResNet
from mimkit_selfie.resnet import ResNet, init_weights, make_norm, make_stage, make_stem


class PatchResNet(Encoder):
    """The first three stages of ResNet-50 v2 on each patch alone, average pooled.

    Args:
        geometry: grid and channels of the image.
        width: channels after the stem; stages 1 to 4 give 4, 8, 16 and 32 times as many.
        depths: bottleneck blocks of the four stages; the fourth belongs to the backbone only.
        stem: "small": 3x3 convolution of stride 1; "imagenet": 7x7 of stride 2 and max-pool;
            "auto": small for patches under 32 pixels.
        closing_norm: end stage 3 in batch norm and ReLU before the average.

    Raises: RecipeError if ``width`` is not a multiple of 8.
    Source: Selfie, arXiv 1906.02940, section 3.1; pre-activation form and 3-4-6 blocks as in
        ResNet-50 v2, arXiv 1603.05027. Whether a norm closes stage 3, and the stem of small
        patches, are not documented; re-implementations use the small stem and no norm.
    """

    miniature: ClassVar[Mapping[str, Any]] = {"width": 16}

    def __init__(
        self,
        geometry: Geometry,
        *,
        width: Annotated[int, Interval(ge=8, le=4_096)] = 64,
        depths: tuple[Depth, Depth, Depth, Depth] = (3, 4, 6, 3),
        stem: Literal["auto", "small", "imagenet"] = "auto",
        closing_norm: bool = True,
    ) -> None:
        super().__init__()
        if width % 8:
            raise RecipeError(
                f"encoder 'patch_resnet', width: must be a multiple of 8, but is {width}."
            )
        self.patch_size = geometry.grid.patch_size
        self.width = width
        self.depths = depths
        self.embed_dim = 16 * width
        imagenet = stem == "imagenet" or (stem == "auto" and self.patch_size >= 32)
        self.stem = make_stem(geometry.channels, width, imagenet)
        self.stages = nn.Sequential(
            *(make_stage(number, width, depths[number - 1]) for number in (1, 2, 3))
        )
        self.norm = make_norm(self.embed_dim) if closing_norm else None
        init_weights(self)
        # Convolutions of small maps run half as fast again in this layout, on CPU and GPU.
        self.to(memory_format=torch.channels_last)

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes each patch at ``context``; patches do not see each other.

        In training they still share the statistics of batch norm, which counts every patch of
        the batch as one image.

        Shape: patches (B, S, D), no prefix, index (B, S).
        """
        patches = patchify(image, self.patch_size)  # (B, N, C, P, P)
        batch_size, num_patches = patches.shape[:2]
        if context is None:
            context = torch.arange(num_patches, device=image.device).expand(batch_size, -1)
        else:
            patches = take(patches, context)  # (B, S, C, P, P)
        vectors = self._map(patches.flatten(0, 1)).mean(dim=(2, 3))  # (B * S, D)
        return _tokens(vectors.view(*context.shape, self.embed_dim), context)

    def features(self, image: Tensor) -> Tokens:
        """Runs over the full image as a convolution; each cell of the last map is a token.

        Shape: image (B, C, H, W); patches (B, T, D), index 0 to T - 1 row by row.
        """
        cells = rearrange(self._map(image), "b d rows cols -> b (rows cols) d")
        index = torch.arange(cells.shape[1], device=image.device)
        return _tokens(cells, index.expand(cells.shape[:2]))

    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns a whole ResNet: stages 1 to 3 from here, stage 4 new, on images of any size.

        Source: section 3.4 ("finetuning"): all layers are trained, the pooling is thrown away.
        """
        return self._resnet()

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns the maps of a whole ResNet, stage 4 new, on images of any size."""
        return DenseResNet(self._resnet(), closed=self.norm is not None)

    def timm_model(self) -> TimmModel:
        """Says how timm's ``ResNetV2``, of three stages, gives the same cells.

        Raises: RecipeError if the stem is the small one, or no norm closes stage 3.
        """
        if len(self.stem) == 1:
            raise RecipeError("timm has no ResNet v2 with the small stem, only stem = 'imagenet'.")
        if self.norm is None:
            raise RecipeError("timm's ResNet v2 ends in a norm, so closing_norm must be true.")
        options = {
            "layers": list(self.depths[:3]),
            "channels": [4 * self.width, 8 * self.width, 16 * self.width],
            "stem_chs": self.width,
            "in_chans": self.stem[0].in_channels,
            "global_pool": "avg",
            "num_classes": 0,
        }
        tensors = {
            name.replace("stem.0.", "stem.conv."): value
            for name, value in self.state_dict().items()
        }
        return TimmModel("resnetv2_50", options, tensors)

    def _resnet(self) -> ResNet:
        return ResNet(self.stem, self.stages, self.norm, self.width, self.depths[3])

    def _map(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        x: Tensor = self.stages(self.stem(image))
        return x if self.norm is None else self.norm(x)


def _tokens(patches: Tensor, index: Tensor) -> Tokens:
    return Tokens(patches=patches, prefix=patches[:, :0], index=index)
