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

    def by_image(self) -> dict[str, Tensor]:
        """Says what each image adds to each measure: numbers whose mean it is.

        The mean IoU is a mean of ratios of sums over images, not of images. Each image is given
        the mean IoU and how its own sums move that (to first order), so that the spread of these
        numbers over images is the error of the mean IoU for other images of the same kind. So are
        the two accuracies.

        Shape: (m,) float64, by ``miou``, ``pixel_accuracy`` and ``mean_accuracy``.
        Source: linearised ratio estimates, W. G. Cochran, Sampling Techniques, 1977, section 6.
        """
        found, true = self.common[:, self.present], self.true[:, self.present]
        all_found, all_true = found.sum(1, keepdim=True), true.sum(1, keepdim=True)
        return {
            "miou": _linearised(found, self.either[:, self.present]),
            "pixel_accuracy": _linearised(all_found, all_true),
            "mean_accuracy": _linearised(found, true),
        }


def _linearised(part: Tensor, whole: Tensor) -> Tensor:
    """The mean over columns of sums of ``part`` by ``whole``, row by row: (m, k) to (m,)."""
    ratio = part.sum(0) / whole.sum(0).clamp(min=1)
    moves = (part - ratio * whole) / whole.mean(0).clamp(min=1e-12)
    return (ratio + moves).mean(1)
