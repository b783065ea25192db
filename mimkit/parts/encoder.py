"""Encoders: what is kept after pre-training, and what fine-tuning makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mimkit.errors import RecipeError
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.part import Module, Part
from mimkit.parts.patches import take
from mimkit.parts.records import Grid, Tokens


@dataclass(frozen=True)
class TimmModel:
    """A model of timm with the weights of an encoder.

    >>> TimmModel("vit_base_patch16_224", {"depth": 6}, {}).options
    {'depth': 6}

    Args:
        model: a name of ``timm.create_model``, of the same class; what else it implies is given in
            ``options``. A class alone, ``"module:class"``, can be exported as a state dict, but
            nothing that timm loads by name.
        options: keyword arguments of it, plain data.
        tensors: its state dict, which fits with ``strict=True``.
    """

    model: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Backbone(Module, ABC):
    """The network that a downstream task trains end to end.

    >>> class Mean(Backbone):
    ...     num_features = 3
    ...
    ...     def forward(self, image):
    ...         return image.mean(dim=(2, 3))
    ...
    ...     def layer_groups(self):
    ...         return []
    >>> Mean()(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 3])

    Attributes:
        num_features: width of its output.
    """

    num_features: int

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Gives one vector per image.

        Shape: (B, C, H, W) to (B, num_features).
        """

    @abstractmethod
    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists the parameters from input to output, for layer-wise learning-rate decay.

        The last group learns at the classifier's own rate: what follows the last layer, such as a
        closing norm; it is empty where nothing does. The group before it is the last layer, which
        the decay counts once, the one below it twice, and so on.
        """

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth: ``rate`` for the last block, rising linearly from 0.

        Raises: RecipeError if this network has none, which is the default.
        """
        raise RecipeError(
            f"{type(self).__name__} has no stochastic depth, so drop_path must be 0, but is {rate}."
        )


class Encoder(Part, Module):
    """What is kept after pre-training.

    >>> from mimkit.builtin.encoders import ViT
    >>> encoder: Encoder = ViT(Geometry(Grid(2, 2, 4)), embed_dim=16, depth=1, num_heads=2)
    >>> encoder(torch.zeros(1, 3, 8, 8), torch.tensor([[0, 3]])).patches.shape
    torch.Size([1, 2, 16])

    Attributes:
        embed_dim: D, the width of its tokens.
        takes_hidden: True if it can show patches as mask tokens; a masker that hides needs it.
    """

    embed_dim: int
    takes_hidden: bool = False

    @abstractmethod
    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``; those that are ``hidden`` as a mask token.

        Args:
            image: (B, C, H, W) float.
            context: (B, S) int64 positions, or None for all of the grid.
            hidden: (B, S) bool, or None for none hidden.

        Shape: patches (B, S, D), prefix (B, R, D), index (B, S).
        """

    def at(
        self, image: Tensor, context: Tensor | None, hidden: Tensor | None, wanted: Tensor
    ) -> Tokens:
        """Encodes like `forward`, but gives only the patches at ``wanted``, of those that entered.

        This is what a head with ``only_targets`` is given. Override it where an encoder can spare
        itself the work on the other tokens in its last block.

        Args:
            image: (B, C, H, W) float.
            context: as in `forward`.
            hidden: as in `forward`.
            wanted: (B, W) int64, places in the context; one may occur more than once.

        Shape: patches (B, W, D), prefix (B, R, D), index (B, W).
        """
        tokens = self(image, context, hidden)
        return Tokens(
            patches=take(tokens.patches, wanted),
            prefix=tokens.prefix,
            index=take(tokens.index, wanted),
        )

    def features(self, image: Tensor) -> Tokens:
        """Gives the tokens that a frozen probe reads; by default those of the whole image.

        Shape: image (B, C, H, W); patches (B, T, D) with T not necessarily N.
        """
        return self(image)

    def layers(self, image: Tensor) -> tuple[Tokens, ...]:
        """Gives the tokens after each block, for probes of every layer; by default the last only.

        The last element is what `features` gives.
        """
        return (self.features(image),)

    def attention(self, image: Tensor) -> Tensor | None:
        """Says which patches of a whole image the last block looks at, for pictures.

        Of the class token, or the mean over all patches that look where there is none; the mean
        over heads (`mimkit.patch_attention`). None if there is no such thing, which is the default.

        Shape: (B, N) float, summing to 1 over the patches.
        """
        return None

    @abstractmethod
    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns a fresh network for fine-tuning, initialised from this encoder's weights.

        Args:
            grid: of the images it will see; None for that of pre-training.

        Raises: RecipeError if it cannot be made for another grid.
        """

    def dense(self, grid: Grid | None = None) -> DenseBackbone:
        """Returns a fresh network for dense tasks, initialised from this encoder's weights.

        Args:
            grid: of the images it will see, square or not; None for that of pre-training.

        Raises: RecipeError if it cannot be made for another grid, or at all, which is the default.
        """
        raise RecipeError(
            f"{type(self).__name__} gives no maps for segmentation and detection. Judge it by "
            "evaluations of whole images, or give it Encoder.dense."
        )

    def regrid(self, tensors: Mapping[str, Tensor], grid: Grid) -> Mapping[str, Tensor]:
        """Brings weights of such an encoder on another grid to this one's; by default as they are.

        What belongs to the grid, such as learned positions, is resampled; what is made anew, such
        as fixed ones, is left out. What then has another shape is refused by who asked.

        Args:
            tensors: under the names of this encoder's state dict, which may lack some.
            grid: that they were trained for.
        """
        return tensors

    def timm_model(self) -> TimmModel:
        """Says which model of timm computes the same features, and with which weights.

        Raises: RecipeError if timm has no such model, which is the default.
        """
        raise RecipeError(f"{type(self).__name__} is none of timm's models.")
