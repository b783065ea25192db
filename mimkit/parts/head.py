"""Heads: how it is predicted."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from mimkit.parts.part import Module, Part
from mimkit.parts.records import Mask, Tokens, Width


class Head(Part, Module):
    """Turns the encoder's tokens into predictions; it never sees a target.

    >>> class Zero(Head):
    ...     def __init__(self, geometry):
    ...         super().__init__()
    ...         self.outputs = geometry.outputs
    ...
    ...     def forward(self, tokens, mask):
    ...         shape = mask.target.shape
    ...         return {name: torch.zeros(*shape, w.size) for name, w in self.outputs.items()}
    >>> Zero(Geometry(Grid(2, 2, 4), outputs={"ids": Width("class", 7)})).ragged
    False

    Attributes:
        ragged: True if padded targets do not disturb the others.
        needs_hidden: True if it reads the tokens at ``mask.target``, so that a masker must hide.
        only_targets: True if it reads these and no others, nor the prefix. It is then given these
            alone, in the order of ``mask.target.flatten(1)``, which lets an encoder do less.
        own_widths: predictions of vectors that this head makes in a space of its own, of another
            width than their target's; `translate` brings the targets there.
    """

    ragged: ClassVar[bool] = False
    needs_hidden: ClassVar[bool] = False
    only_targets: ClassVar[bool] = False
    own_widths: Mapping[str, Width] = {}

    @abstractmethod
    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Predicts every name in ``geometry.outputs`` at ``mask.target``.

        Shape: each (B, G, M, K), K as in ``own_widths``, else as in ``geometry.outputs``.
        """

    def translate(self, prediction: str, target: Tensor) -> Tensor:
        """Brings a target to where this head predicts it; by default it stays what it is.

        Is called after `forward`, whose predictions it cannot reach. No gradient may reach this
        head's own weights, which would move the target towards the prediction.

        Args:
            prediction: a name in ``geometry.outputs``.
            target: what it will be compared with.

        Shape: target (B, G, M, K) of the target's width, result of ``own_widths``.
        """
        return target

    def pooling(self) -> nn.Module | None:
        """Returns a copy of the learned pooling of `Tokens` to (B, D), if this head has one."""
        return None
