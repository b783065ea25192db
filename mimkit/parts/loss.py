"""Losses: how predictions are judged, and what they sum up to."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mimkit.parts.part import Module, Part
from mimkit.parts.records import Batch, Picture


class Loss(Part, Module):
    """Compares predictions with targets.

    >>> class Distance(Loss):
    ...     def __init__(self, geometry):
    ...         super().__init__()
    ...
    ...     def forward(self, prediction, target, valid):
    ...         kept = torch.where(valid[..., None], prediction.float(), 0.0)
    ...         return (kept - target).abs().mean(dim=-1)
    >>> valid = torch.tensor([[[True, False]]])
    >>> Distance(None)(torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), valid).tolist()
    [[[1.0, 0.0]]]

    Attributes:
        kinds: the target width kinds that it can compare.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"vector"})

    @abstractmethod
    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives one value per position, unreduced; the core takes the mean of the valid ones.

        Shape: prediction (B, G, M, K), target (B, G, M) or (B, G, M, K), valid (B, G, M);
        result (B, G, M) float32.
        """

    def metrics(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Gives scalars () worth logging beside the loss; by default none."""
        return {}

    def warning(self, means: Mapping[str, float]) -> str | None:
        """Says what is wrong, in words for people; by default nothing ever is.

        Args:
            means: this loss's metrics, averaged since they were last logged.
        """
        return None

    def render(self, prediction: Tensor, target: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Shows what was predicted as pictures; by default none."""
        return ()


@dataclass(frozen=True)
class Term:
    """One summand of the training loss.

    >>> from mimkit.builtin.losses import MSE
    >>> Term("pixels", "pixels", "pixels", MSE(Geometry(Grid(2, 2, 4))), weight=2.0).weight
    2.0

    Args:
        name: key of the logs: ``loss/<name>``.
        prediction: which of the head's predictions.
        target: which of the recipe's targets.
        loss: the loss.
        weight: factor in the sum.
    """

    name: str
    prediction: str
    target: str
    loss: Loss
    weight: float = 1.0


@dataclass(frozen=True)
class StepOutput:
    """What one training step computed.

    >>> StepOutput(torch.tensor(2.0), {"pixels": torch.tensor(2.0)}, {}).loss
    tensor(2.)

    Args:
        loss: () float32, the weighted sum that is differentiated.
        terms: term name to () float32, unweighted.
        metrics: ``<term>/<metric>`` to () float32, without gradient.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor]
