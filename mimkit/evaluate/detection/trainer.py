"""How detection scores a cell: one detector trained on annotated images, and judged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.data.source import Source
from mimkit.data.truth.regions import encode
from mimkit.evaluate.cells import Cell
from mimkit.evaluate.classifier import layer_scales, recompute_batch_norm, running_norms
from mimkit.evaluate.detection.anchors import fitting_scale
from mimkit.evaluate.detection.annotated import objects_of
from mimkit.evaluate.detection.average_precision import Found, precision_of
from mimkit.evaluate.detection.batches import FrameBatch, Varied, Whole
from mimkit.evaluate.detection.network import Detector, Settings
from mimkit.evaluate.detection.paste import paste
from mimkit.evaluate.detection.pictures import show
from mimkit.evaluate.detection.placing import Place, Variation, fit
from mimkit.evaluate.features import evaluation_mode
from mimkit.evaluate.score import Score
from mimkit.evaluate.shown import Shown
from mimkit.parts.records import View
from mimkit.recipe.sections import TrainSection
from mimkit.train.optim import guard, learning_rate, make_optimizer, set_learning_rate
from mimkit.train.precision import autocast

Schedule = Literal["cosine", "step"]
_DROPS: Final = (9 / 12, 11 / 12)
_FACTOR: Final = 0.1
_STATISTICS_IMAGES: Final = 512
_MANY_BOXES: Final = 1000
"""Images whose boxes are looked at to choose anchors."""
JUDGED_BATCH: Final = 8


@dataclass(frozen=True)
class DetectionTrainer:
    """Trains and judges detectors, here or in a process to which it is sent.

    Args:
        train: the images to train on, and those to choose on.
        test: the images to judge in the end.
        view: how images are rendered.
        variation: how training images vary.
        settings: of the detector.
        section: steps, optimizer and warm-up; a cell's setting comes before it.
        schedule: of the learning rate after the warm-up.
        layer_decay: factor of the learning rate from each layer to the one below; None is 1.
        anchor_scale: side of the anchors in cells; None: by the boxes trained on.
        accumulate: pieces into which a batch is cut.
        device: where to compute.
        workers: loader processes.
        shown: what is kept as pictures of the detections.
        shown_of: seed and fraction of the cells whose they are, whatever its start.
    """

    train: Source
    test: Source
    view: View
    variation: Variation
    settings: Settings
    section: TrainSection
    schedule: Schedule
    layer_decay: float | None
    anchor_scale: float | None
    accumulate: int
    device: torch.device
    workers: int
    shown: Shown
    shown_of: tuple[int, float]

    def one_of(self, count: int) -> DetectionTrainer:
        """Returns the same trainer for one of so many processes, which share the loaders."""
        return replace(self, workers=math.ceil(self.workers / count))

    def __call__(self, network: Detector, cell: Cell, fitted: Tensor, judged: Tensor) -> Score:
        """Trains ``network`` on ``fitted`` and lets it find the objects of ``judged``."""
        with forked(self.device):
            scale = self.fit(network, cell, fitted)
        return self.judge(network, cell, judged, scale)

    def fit(self, network: Detector, cell: Cell, index: Tensor) -> float:
        """Trains a detector in place, and returns the side of its anchors."""
        section = self.section.model_copy(update=cell.setting)
        scale = self.anchor_scale
        if scale is None:
            scale = fitting_scale(_sides(self.train, index, self.view), network.finest)
        network.set_anchors(scale)
        if not network.frozen and running_norms(network.backbone):
            whole = Whole(self.train, index[:_STATISTICS_IMAGES], self.view, JUDGED_BATCH)
            stream = whole.stream(len(whole), workers=self.workers, device=self.device)
            recompute_batch_norm(network.backbone, (shown.image for shown in stream))
        network.train()
        optimizer = make_optimizer(network, section, self._scales(network))
        pieces = (section.total_steps or 0) * self.accumulate
        for number, shown in enumerate(self._batches(index, cell.seed, pieces, section)):
            step, piece = divmod(number, self.accumulate)
            # Dropout and the choice of proposals follow from (seed, number).
            torch.manual_seed(hash((cell.seed, number)) % 2**63)
            loss = torch.stack(list(self.losses(network, shown).values())).sum() / self.accumulate
            if piece == 0:
                optimizer.zero_grad()
                finite = loss.isfinite()
            torch.autograd.backward(loss)
            finite = finite & loss.isfinite()
            if piece == self.accumulate - 1:
                set_learning_rate(optimizer, rate(step, section, self.schedule))
                guard(optimizer, finite)
                optimizer.step()
        return scale

    def losses(self, network: Detector, shown: FrameBatch) -> dict[str, Tensor]:
        """Gives the losses of a batch by name."""
        shapes = [place.shape for place in shown.places]
        with autocast(self.device, self.section.precision):
            _, losses = network(shown.image, shapes, list(shown.targets))
        return losses

    def judge(self, network: Detector, cell: Cell, index: Tensor, scale: float) -> Score:
        """Measures a detector on whole images at their full size."""
        source = self.test if cell.split == "test" else self.train
        found = dict(self.detect(network, source, index))
        objects = objects_of(source)
        precision = precision_of(
            [objects(image) for image in found],
            list(found.values()),
            [_size(source, image) for image in found],
            num_classes=self.settings.num_classes,
            max_detections=self.settings.max_detections,
            masks=self.settings.masks,
        )
        if cell.split == "test" and (cell.seed, cell.fraction) == self.shown_of:
            for image in set(self.shown.index) & found.keys():
                show(self.shown, cell.init, source, image, found[image])
        named = {objects.classes[label]: value for label, value in precision.by_class.items()}
        return Score(
            precision.metrics,
            parts=named if len(named) > 1 else {},
            curves=precision.curves,
            chosen={"anchor_scale": scale},
        )

    @torch.no_grad()
    def detect(
        self, network: Detector, source: Source, index: Tensor
    ) -> Iterator[tuple[int, Found]]:
        """Finds objects in images, in pixels of the whole image; gives number and what was found.

        Args:
            network: used in evaluation mode.
            source: the split.
            index: (n,) int64, which images.
        """
        images = Whole(source, index, self.view, JUDGED_BATCH)
        with evaluation_mode(network):
            for shown in images.stream(len(images), workers=self.workers, device=self.device):
                shapes = [place.shape for place in shown.places]
                with autocast(self.device, self.section.precision):
                    found, _ = network(shown.image, shapes)
                for image, place, each in zip(shown.index, shown.places, found, strict=True):
                    yield image, _full(each, place, _size(source, image))

    def _batches(
        self, index: Tensor, seed: int, count: int, section: TrainSection
    ) -> Iterator[FrameBatch]:
        images = Varied(
            self.train,
            index,
            self.view,
            section.batch_size // self.accumulate,
            objects_of(self.train),
            self.variation,
            seed,
            self.settings.masks,
        )
        return images.stream(count, workers=self.workers, device=self.device)

    def _scales(self, network: Detector) -> dict[torch.nn.Parameter, float] | None:
        if self.layer_decay is None or network.frozen:
            return None
        return layer_scales(network.backbone, self.layer_decay)


def forked(device: torch.device) -> AbstractContextManager[None]:
    """Leaves the random state of the CPU and of a device as it was."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def rate(step: int, train: TrainSection, schedule: Schedule) -> float:
    """The learning rate of a step: after a linear warm-up a cosine, or a tenth at 9/12 and 11/12.

    Source: the steps of the "1x" schedule of 12 epochs.
    """
    total, warmup = train.total_steps or 0, train.warmup_steps or 0
    if schedule == "cosine" or step < warmup:
        return learning_rate(step, total=total, warmup=warmup, peak=train.lr, floor=train.min_lr)
    return train.lr * _FACTOR ** sum(step >= round(drop * total) for drop in _DROPS)


def _full(found: dict[str, Tensor], place: Place, size: tuple[int, int]) -> Found:
    """Moves what was found to the pixels of the whole image."""
    boxes = place.back(found["boxes"], *size)
    regions = None
    if "masks" in found:
        regions = encode(paste(found["masks"], boxes, *size))
    return Found(
        boxes=boxes.cpu().numpy(),
        labels=found["labels"].cpu().numpy() - 1,
        scores=found["scores"].float().cpu().numpy(),
        regions=regions,
    )


def _size(source: Source, image: int) -> tuple[int, int]:
    height, width = source.extent(torch.tensor([image]))[0].tolist()
    return int(height), int(width)


def _sides(source: Source, index: Tensor, view: View) -> NDArray[np.float64]:
    """Roots of the areas of boxes, as the network sees them, of images spread over the index."""
    objects, sides = objects_of(source), [np.zeros(0)]
    few = index[:: math.ceil(len(index) / _MANY_BOXES)].tolist()
    for image in few:
        height, width = size = _size(source, image)
        known = objects(image)
        boxes = known.boxes[~known.crowd].astype(np.float64)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        resized = fit(size, view.image_size)
        sides.append(np.sqrt(area * (resized[0] / height) * (resized[1] / width)))
    return np.concatenate(sides)
