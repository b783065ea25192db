"""What an evaluator receives, gives and must be."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from mimkit.parts.part import Part
from mimkit.train.precision import autocast, uses_bfloat16

Plain = str | int | float | bool | None

if TYPE_CHECKING:
    from mimkit.data.pixels.augment import Augment
    from mimkit.data.source import Source
    from mimkit.parts.masker import Masker
    from mimkit.parts.records import View
    from mimkit.train.step import Pretrainer


def silent(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Subject:
    """A pre-trained model and the data to judge it by.

    >>> class CountImages(Evaluator):
    ...     def __init__(self, geometry): ...
    ...
    ...     def run(self, subject: Subject):
    ...         count = len(subject.test)
    ...         return [Result("count", "images", count, count, subject.seed, "pretrained", {})]

    Args:
        pretrainer: the model as it stands; an evaluator must not change it.
        masker: the recipe's, for evaluators that repeat the pre-training task.
        views: every rendering that the recipe's parts ask for, the encoder's first.
        train: the training split, whose labels may be used; for evaluators that need labels that
            of ``data.labelled``, if the recipe names it.
        test: the held-out split of the same data; nothing is ever chosen on it.
        augment: the recipe's augmentation.
        device: where to compute.
        seed: of the run.
        batch_size: of the pre-training, for evaluators that repeat its task.
        fresh: builds the same recipe with new random weights from a seed: the baseline.
        workdir: a folder of this evaluator's own, in which it may keep finished cells so that a
            killed run does not repeat them.
        report: called with a line of text whenever there is progress to tell.
        detail: called with what only those want to read who look for a cause, such as the scores of
            a search on development images; by default with no effect.
        workers: loader processes for sources that decode files.
        precision: in which `autocast` computes features, as ``train.precision`` of a recipe.
    """

    pretrainer: Pretrainer
    masker: Masker
    views: tuple[View, ...]
    train: Source
    test: Source
    augment: Augment
    device: torch.device
    seed: int
    batch_size: int
    fresh: Callable[[int], Pretrainer]
    workdir: Path
    report: Callable[[str], None] = print
    detail: Callable[[str], None] = silent
    workers: int = 0
    precision: str = "float32"

    def autocast(self) -> AbstractContextManager[object]:
        """Computes as the recipe trains: in bfloat16 where its precision means that, as on CUDA."""
        return autocast(self.device, self.precision)

    @property
    def rounding(self) -> dict[str, str]:
        """What features are computed in if not in float32; part of the key of a finished cell."""
        return {"features": "bfloat16"} if uses_bfloat16(self.device, self.precision) else {}

    @property
    def view(self) -> View:
        """The encoder's view of an image."""
        return self.views[0]


@dataclass(frozen=True)
class Result:
    """One measured number.

    >>> Result("knn", "accuracy", 0.4, 1000, 0, "pretrained", {"k": 20}).value
    0.4

    Args:
        evaluator: registered name of the evaluator.
        metric: what was measured, e.g. ``"accuracy"``; where an evaluator also measures a
            baseline, more must be better.
        value: the number; accuracies are in [0, 1].
        num_images: how many images it was measured on.
        seed: of the evaluation.
        init: ``"pretrained"``, ``"scratch"`` (trained without pre-training), ``"random"`` (frozen
            random features) or ``"pixels"`` (no encoder at all).
        protocol: every choice that makes the number comparable or not (label fraction, ...);
            results that differ in nothing but init and seed are compared.
        chosen: what a search on the development split found (lr, ...), free to differ.
        image_scores: what each judged image scored (`mimkit.evaluate.image_scores.pack`), whose
            mean is ``value``; None if that is not kept. With it intervals hold for other test
            images too, and as tight as the pairing of images allows.
        parts: what ``value`` is the mean of, by name, such as the IoU of each class.
        curves: lines that go with the value, by name: numbers at even steps from 0 to 1, such as
            precision at each recall.
    """

    evaluator: str
    metric: str
    value: float
    num_images: int
    seed: int
    init: str = "pretrained"
    protocol: Mapping[str, Plain] = field(default_factory=dict)
    chosen: Mapping[str, Plain] = field(default_factory=dict)
    image_scores: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, object]:
        """What ``results.json`` has of it: all but parts and curves that there are none of."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value or name not in {"parts", "curves"}
        }


@dataclass(frozen=True)
class Work:
    """What one call of `Evaluator.run` has to do, before it does it.

    >>> Work(encoded=60_000).encoded
    60000

    Args:
        encoded: images that pass a network forwards only: the frozen encoder, or a fine-tuned
            network that is judged.
        trained: images that pass a fine-tuned network forwards and backwards.
        seconds: for all else that takes long, from a short measured trial.
    """

    encoded: int = 0
    trained: int = 0
    seconds: float = 0.0


class Evaluator(Part):
    """Judges a pre-trained encoder.

    >>> class CountLabels(Evaluator):
    ...     needs_labels = True
    ...
    ...     def __init__(self, geometry): ...
    ...
    ...     def run(self, subject):
    ...         count = len(subject.train.labels.unique())
    ...         return [Result("count_labels", "classes", count, 0, subject.seed, "pretrained", {})]

    Attributes:
        every_steps: run also during training at this interval; None or 0 only at its end.
        needs_targets: True if it repeats the pre-training task, so that targets are prepared also
            for a run that trains nothing.
        needs_labels: True if it reads labels; then its images are those of ``data.labelled``, if
            the recipe names any.
        needs_masks: True if it reads the class of every pixel; its images are then chosen likewise.
        needs_objects: True if it reads boxes; its images are then chosen likewise.
        ranks: False if more of its numbers is not better: then no method is called so by them.
    """

    needs_targets: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_masks: ClassVar[bool] = False
    needs_objects: ClassVar[bool] = False
    ranks: ClassVar[bool] = True
    every_steps: int | None = None

    @classmethod
    def needs_truth(cls) -> bool:
        """Whether it reads anything that people say of images."""
        return cls.needs_labels or cls.needs_masks or cls.needs_objects

    def check(self, subject: Subject) -> None:
        """Refuses at once what `run` could not do.

        Called before anything that takes long: the targets are not prepared yet.

        Raises: RecipeError, DataError.
        """

    def work(self, subject: Subject) -> Work:
        """Counts what one call of `run` does, baselines and searches included; by default nothing.

        From it the time of an evaluation is estimated. What an interrupted run has finished is
        not taken off.
        """
        return Work()

    @abstractmethod
    def run(self, subject: Subject) -> list[Result]:
        """Measures, leaving the subject as it was (weights, mode, random state)."""
