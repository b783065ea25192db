"""Losses that several methods share, all in float32 whatever the precision of the step.

Invalid positions are blanked before anything is computed from them: their gradient would
otherwise be 0 x NaN if the padding held a NaN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.errors import RecipeError
from mimkit.parts.base import Loss
from mimkit.parts.records import Geometry


class CrossEntropy(Loss):
    """Cross-entropy with the class that the target names.

    Args:
        geometry: not needed.

    Source: BEiT, arXiv 2106.08254, equation 2.
    """

    kinds = frozenset({"class"})

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives one cross-entropy per position.

        Shape: prediction (B, G, M, K), target (B, G, M) int64; result (B, G, M).
        """
        logits = torch.where(valid[..., None], prediction.float(), 0.0)
        classes = torch.where(valid, target, 0)
        return F.cross_entropy(logits.movedim(-1, 1), classes, reduction="none")

    def metrics(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Gives the share of valid positions whose highest score is the target's."""
        right = (prediction.argmax(dim=-1) == target) & valid
        return {"accuracy": right.sum() / valid.sum().clamp(min=1)}


class MSE(Loss):
    """Mean squared difference.

    Args:
        geometry: not needed.

    Source: MAE, arXiv 2111.06377, section 3.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives the mean over the K values of each position.

        Shape: prediction and target (B, G, M, K); result (B, G, M).
        """
        return _difference(prediction, target, valid).square().mean(dim=-1)


class L1(Loss):
    """Mean absolute difference.

    Args:
        geometry: not needed.

    Source: SimMIM, arXiv 2111.09886, equation 1.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives the mean over the K values of each position.

        Shape: prediction and target (B, G, M, K); result (B, G, M).
        """
        return _difference(prediction, target, valid).abs().mean(dim=-1)


class SmoothL1(Loss):
    """Squared difference where small, absolute difference where large.

    Args:
        geometry: not needed.
        beta: the difference at which one turns into the other.

    Raises: RecipeError if ``beta`` is not positive.
    Source: Fast R-CNN, arXiv 1504.08083, equation 3; I-JEPA's code uses it with beta 1.
    """

    def __init__(self, geometry: Geometry, *, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise RecipeError(f"loss 'smooth_l1', beta: must be positive, but is {beta}.")
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives the mean over the K values of each position.

        Shape: prediction and target (B, G, M, K); result (B, G, M).
        """
        difference = _difference(prediction, target, valid)
        zero = torch.zeros_like(difference)
        return F.smooth_l1_loss(difference, zero, reduction="none", beta=self.beta).mean(dim=-1)


def _difference(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid[..., None], prediction.float() - target.float(), 0.0)
