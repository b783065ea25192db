"""How well a classifier does."""

import math
from dataclasses import dataclass

from torch import Tensor

from mimkit.evaluate.image_scores import pack


@dataclass(frozen=True)
class Score:
    """What came of judging some images.

    Args:
        accuracy: in [0, 1].
        loss: mean cross-entropy; infinite for a network whose training diverged.
        image_scores: which images were right, as `mimkit.evaluate.image_scores.pack` writes it.
    """

    accuracy: float
    loss: float
    image_scores: str

    @classmethod
    def of(cls, correct: Tensor, loss: float) -> "Score":
        """Sums up which images were right, (m,) bool, in ascending order of their numbers."""
        loss = loss if math.isfinite(loss) else math.inf
        return cls(int(correct.sum()) / len(correct), loss, pack(correct))


def are_right(scores: Tensor, labels: Tensor) -> Tensor:
    """Says which images have their highest score at their label; of equal ones the first counts.

    Shape: scores (m, num_classes), labels (m,) int64; (m,) bool.
    """
    # Three seconds, which a command that judges nothing need not wait.
    from torchmetrics.functional.classification import multiclass_accuracy  # noqa: PLC0415

    by_image = multiclass_accuracy(
        scores[..., None],
        labels[:, None],
        num_classes=scores.shape[1],
        average="micro",
        multidim_average="samplewise",
        validate_args=False,  # which would wait for the device
    )
    return by_image.bool()
