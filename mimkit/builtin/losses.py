"""Losses that several methods share, all in float32 whatever the precision of the step.

Invalid positions are blanked, not multiplied by zero: their gradient would otherwise be 0 x NaN
if the padding held a NaN.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mimkit.parts.bounds import Positive
from mimkit.parts.loss import Loss
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
        classes = torch.where(valid, target, 0)
        if torch.compiler.is_compiling():
            return _compiled_cross_entropy(prediction, classes, valid)
        loss: Tensor = _CrossEntropy.apply(prediction, classes, valid)
        return loss

    def metrics(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Gives the share of valid positions that are right, and what one fixed answer reaches.

        ``accuracy``: the highest score is the target's. ``majority``: the target is the class
        that is most frequent in this very batch; in a batch of few positions that is more than
        the most frequent class of all images would reach, so it is a hard baseline. ``even``: the
        loss of even odds for all K classes, ln K.
        """
        num_valid = valid.sum().clamp(min=1)
        right = (prediction.argmax(dim=-1) == target) & valid
        classes = torch.where(valid, target, 0).flatten()
        counts = torch.zeros(prediction.shape[-1], device=target.device)
        counts = counts.scatter_add(0, classes, valid.flatten().float())  # (K,)
        return {
            "accuracy": right.sum() / num_valid,
            "majority": counts.max() / num_valid,
            "even": torch.full_like(num_valid, math.log(len(counts)), dtype=torch.float32),
        }


class _CrossEntropy(torch.autograd.Function):
    """Makes one tensor of the logits' size, which becomes the gradient in place.

    Its own function, because blanking the padding costs `torch.nn.functional.cross_entropy` a
    copy each way, and ``ignore_index`` lets a NaN of the padding into the gradient. It can be
    differentiated once: torch refuses a second backward pass through the same graph.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, valid: Tensor) -> Tensor:
        shares = torch.softmax(logits, dim=-1, dtype=torch.float32)
        # The highest share is at least 1 / K: its logarithm is exact where others underflow.
        lead = logits.amax(dim=-1).float() - logits.gather(-1, classes[..., None])[..., 0].float()
        loss = lead - shares.amax(dim=-1).log()  # (B, G, M)
        # On a CPU looking is cheaper than a pass over all shares; elsewhere it would wait.
        if valid.device.type != "cpu" or not valid.all():
            shares.masked_fill_(~valid[..., None], 0.0)
        ctx.save_for_backward(shares, classes, valid)
        ctx.dtype = logits.dtype
        return torch.where(valid, loss, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        shares, classes, valid = ctx.saved_tensors
        scale = torch.where(valid, gradient, 0.0)[..., None]
        result = shares.mul_(scale)
        result.scatter_add_(-1, classes[..., None], -scale)
        return result.to(ctx.dtype), None, None


def _compiled_cross_entropy(logits: Tensor, classes: Tensor, valid: Tensor) -> Tensor:
    """Written as one would: compiled it keeps the logits alone, and no copy is ever made.

    Tracing a function of one's own makes torch 2.11 warn of itself.
    """
    scores = torch.where(valid[..., None], logits.float(), 0.0)
    loss = F.cross_entropy(scores.flatten(0, -2), classes.flatten(), reduction="none")
    return torch.where(valid, loss.view_as(valid), 0.0)


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

    Source: Fast R-CNN, arXiv 1504.08083, equation 3; I-JEPA's code uses it with beta 1.
    """

    def __init__(self, geometry: Geometry, *, beta: Positive = 1.0) -> None:
        super().__init__()
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
