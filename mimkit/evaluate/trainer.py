"""How fine-tuning scores a cell: one network trained on labelled images, and judged."""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from mimkit.data.pixels.augment import Augment
from mimkit.data.source import Source
from mimkit.evaluate.cells import Cell
from mimkit.evaluate.classifier import (
    Classifier,
    recompute_batch_norm,
    score_classifier,
    train_classifier,
)
from mimkit.evaluate.features import FEATURE_BATCH
from mimkit.evaluate.fractions import Labels
from mimkit.evaluate.images import TrainingImages, WholeImages
from mimkit.evaluate.mixing import Mixing
from mimkit.evaluate.randaugment import RandAugment
from mimkit.evaluate.score import Score
from mimkit.parts.records import View
from mimkit.recipe.sections import TrainSection

_STATISTICS_IMAGES: Final = 2048


@dataclass(frozen=True)
class Trainer:
    """Trains and judges networks, here or in a process to which it is sent.

    Args:
        train: the images to train on, and those to choose on.
        test: the images to judge in the end.
        labels: of both.
        view: how images are rendered.
        augment: how training images vary.
        rand_augment: what is done to each of them after that; None for nothing.
        mixing: what is done to every batch; None for nothing.
        section: steps, optimizer and schedule; a cell's setting comes before it.
        label_smoothing: see `mimkit.evaluate.classifier.train_classifier`.
        layer_decay: likewise.
        recompute_batch_norm: whether a pre-trained network's statistics are measured anew first.
        device: where to compute.
        workers: loader processes.
    """

    train: Source
    test: Source
    labels: Labels
    view: View
    augment: Augment
    rand_augment: RandAugment | None
    mixing: Mixing | None
    section: TrainSection
    label_smoothing: float
    layer_decay: float | None
    recompute_batch_norm: bool
    device: torch.device
    workers: int

    def one_of(self, count: int) -> "Trainer":
        """Returns the same trainer for one of so many processes, which share the loaders."""
        return replace(self, workers=math.ceil(self.workers / count))

    def __call__(self, network: Classifier, cell: Cell, fitted: Tensor, judged: Tensor) -> Score:
        """Trains ``network`` on ``fitted`` and lets it classify ``judged``."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._train(network, cell, fitted)
        on_test = cell.split == "test"
        return score_classifier(
            network,
            WholeImages(self.test if on_test else self.train, judged, (self.view,), FEATURE_BATCH),
            self.labels.test if on_test else self.labels.train,
            precision=self.section.precision,
            device=self.device,
            workers=self.workers,
        )

    def _train(self, network: Classifier, cell: Cell, index: Tensor) -> None:
        section = self.section.model_copy(update=cell.setting)
        images = TrainingImages(
            self.train if self.rand_augment is None else self.train.to("cpu"),
            index,
            (self.view,),
            section.batch_size,
            self.augment,
            cell.seed,
            self.rand_augment,
        )
        if cell.init == "pretrained" and self.recompute_batch_norm:
            count, size = statistics_batches(len(index))
            whole = replace(images, batch_size=size, variation=Augment.none(), rand_augment=None)
            stream = whole.stream(count, workers=self.workers, device=self.device)
            recompute_batch_norm(network, (views["image"] for _, views in stream))
        train_classifier(
            network,
            images,
            self.labels.train,
            section,
            label_smoothing=self.label_smoothing,
            layer_decay=self.layer_decay,
            mixing=self.mixing,
            device=self.device,
            workers=self.workers,
        )


def statistics_batches(num_images: int) -> tuple[int, int]:
    """How many batches of how many images batch norm is measured on."""
    size = min(FEATURE_BATCH, num_images)
    return min(num_images, _STATISTICS_IMAGES) // size, size
