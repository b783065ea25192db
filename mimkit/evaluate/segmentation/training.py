"""How segmentation scores a cell: one network trained on masks, and judged at full size."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from mimkit.data.source import Source
from mimkit.evaluate.cells import Cell
from mimkit.evaluate.classifier import layer_scales
from mimkit.evaluate.features import evaluation_mode
from mimkit.evaluate.image_scores import pack_numbers
from mimkit.evaluate.score import Score
from mimkit.evaluate.segmentation.confusion import Overlap, confusion
from mimkit.evaluate.segmentation.crops import Crops
from mimkit.evaluate.segmentation.network import Segmenter
from mimkit.evaluate.segmentation.windows import predictions
from mimkit.evaluate.shown import IMAGE, TRUTH, Shown, painted, visible
from mimkit.recipe.sections import TrainSection
from mimkit.train.optim import make_optimizer, set_learning_rate
from mimkit.train.precision import autocast

_TRIAL_STEPS: Final = 2
_TRIAL_IMAGES: Final = 4


def poly(step: int, *, total: int, warmup: int, peak: float, power: float) -> float:
    """Gives the learning rate of a step: linear warm-up, then a power of the share that is left.

    >>> [poly(step, total=4, warmup=1, peak=1.0, power=1.0) for step in range(4)]
    [0.5, 0.75, 0.5, 0.25]
    """
    rate = peak * (1 - step / total) ** power
    return peak * (step + 1) / (warmup + 1) if step < warmup else rate


@dataclass(frozen=True)
class SegmentationTrainer:
    """Trains and judges networks, here or in a process to which it is sent.

    Args:
        train: the images to train on, and those to choose on.
        test: the images to judge in the end.
        crops: how they are cut to be trained on; its index and seed are a cell's.
        section: steps, optimizer and rate; a cell's setting comes before it.
        power: of the schedule.
        layer_decay: factor of the learning rate from each layer to the one below; None is 1.
        device: where to compute.
        workers: loader processes.
        shown: which predictions are kept as pictures.
        shown_of: the cell of whose networks they are, whatever its start.
    """

    train: Source
    test: Source
    crops: Crops
    section: TrainSection
    power: float
    layer_decay: float | None
    device: torch.device
    workers: int
    shown: Shown
    shown_of: tuple[int, float]

    def one_of(self, count: int) -> SegmentationTrainer:
        """Returns the same trainer for one of so many processes, which share the loaders."""
        return replace(self, workers=math.ceil(self.workers / count))

    def __call__(self, network: Segmenter, cell: Cell, fitted: Tensor, judged: Tensor) -> Score:
        """Trains ``network`` on ``fitted`` and lets it judge ``judged``."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self.fit(network, cell, fitted, self.section.total_steps or 0)
        return self.judge(network, cell, judged)

    def fit(self, network: Segmenter, cell: Cell, fitted: Tensor, steps: int) -> None:
        """Trains a network in place for the first ``steps`` steps of the schedule."""
        section = self.section.model_copy(update=cell.setting)
        crops = replace(self.crops, source=self.train, index=fitted, seed=cell.seed)
        scales = None
        if self.layer_decay is not None and not network.frozen:
            scales = layer_scales(network.backbone, self.layer_decay)
        optimizer = make_optimizer(network, section, scales)
        network.train()
        stream = crops.stream(steps, workers=self.workers, device=self.device)
        for step, (image, mask) in enumerate(stream):
            # Dropout and its like follow from (seed, step), as in pre-training.
            torch.manual_seed(hash((cell.seed, step)) % 2**63)
            lr = poly(
                step,
                total=section.total_steps or 1,
                warmup=section.warmup_steps or 0,
                peak=section.lr,
                power=self.power,
            )
            set_learning_rate(optimizer, lr)
            with autocast(self.device, section.precision):
                loss = network.loss(image, mask)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    def seconds(
        self, network: Segmenter, cell: Cell, fitted: Tensor, judged: Tensor
    ) -> tuple[float, float]:
        """Measures what a crop that is trained on takes, and an image that is judged."""
        size = min(self.section.batch_size, _TRIAL_IMAGES)
        few = judged[:_TRIAL_IMAGES]
        small = replace(
            self, crops=replace(self.crops, batch_size=size), workers=0, shown_of=(-1, 0.0)
        )
        with torch.random.fork_rng(devices=[]):
            small.fit(network, cell, fitted, 1)  # the first is slower
            start = time.perf_counter()
            small.fit(network, cell, fitted, _TRIAL_STEPS)
            trained = time.perf_counter()
            small.judge(network, cell, few)
        judging = time.perf_counter() - trained
        return (trained - start) / _TRIAL_STEPS / size, judging / len(few)

    @torch.no_grad()
    def judge(self, network: Segmenter, cell: Cell, judged: Tensor) -> Score:
        """Measures a network at the full size of images."""
        source = self.test if cell.split == "test" else self.train
        assert source.masks is not None
        classes = source.masks.classes

        def logits(image: Tensor) -> Tensor:
            with autocast(self.device, self.section.precision):
                return network(image)

        counts = []
        with evaluation_mode(network):
            pairs = predictions(
                logits,
                source,
                judged.tolist(),
                view=self.crops.view,
                side=self.crops.side,
                num_classes=len(classes),
                device=self.device,
            )
            for index, (truth, predicted) in zip(judged.tolist(), pairs, strict=True):
                matrix = confusion(truth, predicted, len(classes))
                common = matrix.diagonal()
                counts.append(
                    torch.stack([common, matrix.sum(0) + matrix.sum(1) - common, matrix.sum(1)])
                )
                if index in self.shown.index and self._is_shown(cell):
                    self._draw(truth, predicted, cell, index)
        return score_of(Overlap(*torch.stack(counts).double().cpu().unbind(1)), classes)

    def _is_shown(self, cell: Cell) -> bool:
        return cell.split == "test" and (cell.seed, cell.fraction) == self.shown_of

    def _draw(self, truth: Tensor, predicted: Tensor, cell: Cell, index: int) -> None:
        assert self.test.masks is not None
        self.shown.explain(self.test.masks.classes)
        image = visible(self.test.image(index).tensor())
        self.shown.add(IMAGE, index, image)
        self.shown.add(TRUTH, index, painted(image, truth.cpu()))
        self.shown.add(cell.init, index, painted(image, predicted.cpu()))


def score_of(overlap: Overlap, classes: tuple[str, ...]) -> Score:
    """Sums up how well images were segmented."""
    present = overlap.present.tolist()
    parts: Mapping[str, float] = {
        name: value
        for name, value, there in zip(classes, overlap.iou.tolist(), present, strict=True)
        if there
    }
    scores = {name: pack_numbers(each) for name, each in overlap.by_image().items()}
    return Score(
        {
            "miou": overlap.mean_iou,
            "pixel_accuracy": overlap.pixel_accuracy,
            "mean_accuracy": overlap.mean_accuracy,
        },
        image_scores=scores.pop("miou"),
        other_scores=scores,
        parts=parts,
    )
