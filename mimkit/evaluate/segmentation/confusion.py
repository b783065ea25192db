"""How often each class was taken for each other: one matrix over all pixels that are judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def confusion(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Counts pixels by their class and by the class that was predicted.

    >>> confusion(torch.tensor([0, 1, 1, -1]), torch.tensor([0, 1, 0, 1]), 2)
    tensor([[1, 0],
            [1, 1]])

    Args:
        truth: (...) int64; negative where a pixel is not judged.
        predicted: (...) int64.
        num_classes: K.

    Shape: (K, K) int64; rows are true classes.
    """
    judged = truth >= 0
    # What is not judged is counted in a row of its own, so that nothing depends on how much it is.
    row = torch.where(judged, truth, num_classes)
    pairs = (row * num_classes + predicted).flatten()
    counts = torch.bincount(pairs, minlength=(num_classes + 1) * num_classes)
    matrix: Tensor = counts[: num_classes**2].view(num_classes, num_classes)
    return matrix


@dataclass(frozen=True)
class Overlap:
    """How well predicted regions cover the true ones, of all images together.

    Args:
        common: (m, K) float64, pixels of each image where class and prediction agree on a class.
        either: (m, K) float64, pixels that have the class, are predicted to have it, or both.
        true: (m, K) float64, pixels that have the class.
    """

    common: Tensor
    either: Tensor
    true: Tensor

    @property
    def present(self) -> Tensor:
        """Which classes some judged pixel has, (K,) bool; the others have no score."""
        return self.true.sum(0) > 0

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class over the whole set, (K,) float64."""
        return self.common.sum(0) / self.either.sum(0).clamp(min=1)

    @property
    def mean_iou(self) -> float:
        """The mean over the classes that are present."""
        return float(self.iou[self.present].mean())

    @property
    def pixel_accuracy(self) -> float:
        """The share of judged pixels whose class was predicted."""
        return float(self.common.sum() / self.true.sum().clamp(min=1))

    @property
    def mean_accuracy(self) -> float:
        """The mean over present classes of the share of their pixels that was found."""
        shares = self.common.sum(0) / self.true.sum(0).clamp(min=1)
        return float(shares[self.present].mean())

    def by_image(self) -> Tensor:
        """Says what each image adds to the mean IoU: numbers whose mean it is.

        The mean IoU is a mean of ratios of sums over images, not of images. Each image is given
        the mean IoU and how its own sums move that (to first order), so that the spread of these
        numbers over images is the error of the mean IoU for other images of the same kind.

        Shape: (m,) float64.
        Source: linearised ratio estimates, W. G. Cochran, Sampling Techniques, 1977, section 6.
        """
        mean_either = self.either.mean(0).clamp(min=1e-12)
        moves = (self.common - self.iou * self.either) / mean_either
        return self.mean_iou + moves[:, self.present].mean(1)
