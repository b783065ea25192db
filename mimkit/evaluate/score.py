"""How well a cell of the table does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mimkit.evaluate.image_scores import pack


@dataclass(frozen=True)
class Score:
    """What came of judging some images.

    >>> Score({"accuracy": 0.5}, loss=1.2).value
    0.5

    Args:
        metrics: name to number, each reported; the first decides a search, so more of it is better.
        loss: decides between equally good ones; infinite for a network whose training diverged,
            None where there is none.
        image_scores: what each image scored of the first metric, as
            `mimkit.evaluate.image_scores.pack` writes it; None if its mean is not the metric.
        other_scores: the same of other metrics, by name.
        parts: what the first metric is the mean of, by name, such as each class's.
        curves: lines that go with it, as in `mimkit.evaluate.base.Result`.
        chosen: what was found out beside, such as a value that was searched for; plain data.
    """

    metrics: Mapping[str, float]
    loss: float | None = None
    image_scores: str | None = None
    other_scores: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The first metric."""
        return next(iter(self.metrics.values()))

    @property
    def rank(self) -> tuple[float, float]:
        """Orders scores. Few development images often tie: then the smaller loss decides."""
        return self.value, -(self.loss or 0.0)

    @classmethod
    def of(cls, correct: Tensor, loss: float | None = None) -> "Score":
        """Sums up which images were right, (m,) bool, in ascending order of their numbers."""
        if loss is not None and not math.isfinite(loss):
            loss = math.inf
        return cls({"accuracy": int(correct.sum()) / len(correct)}, loss, pack(correct))


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
