"""A ResNet of timm that hides patches."""

import copy
from typing import Any, Final

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import DropPath
from timm.models import group_parameters
from torch import Tensor, nn

from mimkit.errors import BoundaryError
from mimkit.parts.dense import DenseBackbone, Level
from mimkit.parts.encoder import Backbone, Encoder
from mimkit.parts.patches import patchify, unpatchify
from mimkit.parts.records import Grid, Tokens

_STAGES: Final = ("layer1", "layer2", "layer3", "layer4")


class TimmResNet(Encoder):
    """A ``ResNet`` of timm: the token of a patch is what its last map holds there.

    Args:
        model: without a classifier; this encoder owns it from now on.
        grid: of the patches.
        channels: of the images.
        mask_token: have a learned patch of pixels that hidden ones are shown as.

    Source: own. Convolutions cannot drop patches; a hidden one is replaced in the image, as SimMIM
        replaces tokens (arXiv 2111.09886, section 3.2).
    """

    def __init__(self, model: Any, grid: Grid, channels: int, *, mask_token: bool) -> None:
        super().__init__()
        self.grid = grid
        self.model = model
        self.embed_dim = model.num_features
        self.takes_hidden = mask_token
        pixels = torch.empty(channels, grid.patch_size, grid.patch_size)
        token = nn.init.trunc_normal_(pixels, std=0.02)
        self.mask_token = nn.Parameter(token) if mask_token else None

    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the whole image; a map of another size than the grid is resampled to it.

        Raises: BoundaryError if not all patches enter.
        """
        num_patches = self.grid.num_patches
        index = torch.arange(num_patches, device=image.device).expand(image.shape[0], -1)
        if context is not None and context.shape[1] != num_patches:
            raise BoundaryError(
                f"encoder 'timm': all {num_patches} patches must enter a ResNet, but "
                f"{context.shape[1]} did. Use a masker that replaces patches instead of dropping "
                "them."
            )
        if hidden is not None and self.mask_token is not None:
            if context is not None:
                hidden = torch.zeros_like(hidden).scatter(1, context, hidden)
            patches = patchify(image, self.grid.patch_size)  # (B, N, C, P, P)
            shown = torch.where(hidden[..., None, None, None], self.mask_token, patches)
            image = unpatchify(shown, self.grid)
        cells = self.model.forward_features(image)  # (B, D, rows, cols) of the map
        cells = F.interpolate(cells, (self.grid.rows, self.grid.cols), mode="bilinear")
        return _tokens(cells, index)

    def features(self, image: Tensor) -> Tokens:
        """Gives each cell of the last map as a token, however many there are."""
        cells = self.model.forward_features(image)
        index = torch.arange(cells.shape[2] * cells.shape[3], device=image.device)
        return _tokens(cells, index.expand(image.shape[0], -1))

    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns the model as timm pools it, for images of any size."""
        return _PooledResNet(copy.deepcopy(self.model))

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns the maps after each of the four stages, for images of any size."""
        return _DenseResNet(copy.deepcopy(self.model))


def _tokens(cells: Tensor, index: Tensor) -> Tokens:
    patches = rearrange(cells, "b d rows cols -> b (rows cols) d")
    return Tokens(patches=patches, prefix=patches[:, :0], index=index)


class _PooledResNet(Backbone):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.num_features = model.num_features

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = self.model(image)
        return pooled

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return _groups(self.model)

    def set_drop_path(self, rate: float) -> None:
        _set_drop_path(self.model, rate)


class _DenseResNet(DenseBackbone):
    """The map after each stage; the last is what a frozen probe reads too."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        known = {each["module"]: each for each in model.feature_info}
        self.levels = tuple(
            Level(known[name]["num_chs"], known[name]["reduction"]) for name in _STAGES
        )
        self.last = self.levels[-1]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        x = model.maxpool(model.act1(model.bn1(model.conv1(image))))
        return tuple(x := getattr(model, name)(x) for name in _STAGES)

    def features(self, image: Tensor) -> Tensor:
        return self(image)[-1]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return _groups(self.model)

    def set_drop_path(self, rate: float) -> None:
        _set_drop_path(self.model, rate)


def _groups(model: Any) -> list[list[nn.Parameter]]:
    """Lists the stem and every block, as timm groups them; nothing follows them."""
    named = dict(model.named_parameters())
    groups = group_parameters(model, model.group_matcher())
    return [*([named[name] for name in names] for _, names in sorted(groups.items())), []]


def _set_drop_path(model: Any, rate: float) -> None:
    blocks = [block for name in _STAGES for block in getattr(model, name)]
    for number, block in enumerate(blocks):
        block.drop_path = DropPath(rate * number / max(len(blocks) - 1, 1))
