"""Segmentation at fractions of the masks, always beside the same network without pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Final, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from mimkit.errors import RecipeError
from mimkit.evaluate.at_once import Call
from mimkit.evaluate.base import Evaluator, Plain, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table, digest
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.fractions import Labels, Subsets
from mimkit.evaluate.grids import grid_of
from mimkit.evaluate.rows import train_rows
from mimkit.evaluate.score import Score
from mimkit.evaluate.search import named
from mimkit.evaluate.segmentation.crops import Crops
from mimkit.evaluate.segmentation.network import HeadName, Heads, Segmenter
from mimkit.evaluate.segmentation.training import SegmentationTrainer
from mimkit.evaluate.shown import Shown
from mimkit.evaluate.starts import TRAINED, start_of
from mimkit.evaluate.truth import annotated, masks_in
from mimkit.parts.bounds import (
    AnyCount,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Rate,
    Ratio,
    Size,
)
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.records import Geometry, View
from mimkit.recipe.sections import TrainSection
from mimkit.train.step import Pretrainer

_NAME: Final = "segmentation"
_PROTOCOL: Final = {"total_steps", "batch_size", "warmup_steps", "weight_decay"}
_NAMED: Final = 10


class Segmentation(Evaluator):
    """Mean intersection over union after training a head, or the whole network, on masks.

    The learning rate is chosen on a development split of the images whose masks are used, for each
    fraction, seed and start anew; then the network is trained on all of them. Images, crops and
    candidates of a seed are the same for both starts. Test images are judged at their full size,
    by windows of the size of a crop; one confusion matrix counts all of their pixels.

    Args:
        geometry: the patch grid of pre-training.
        head: "linear": batch norm, dropout and a 1x1 convolution on the last map; "upernet":
            UPerNet on four maps, with an auxiliary head on the third.
        frozen: train the head alone, beside one on random weights; false: train the whole network,
            beside one from scratch; "auto": frozen under the linear head.
        label_fractions: shares of the masks to train on.
        seeds: how often, each with its own images, crops and new layers.
        total_steps: optimizer steps of one training, the same for every fraction.
        batch_size: crops of a step.
        lrs: learning rates of AdamW to choose from.
        warmup_steps: steps of linear warm-up, before the rate falls to 0.
        power: of the fall: 1 for a straight line.
        weight_decay: not applied to biases and norms.
        layer_decay: factor of the learning rate per layer below the head; None for one rate.
        drop_path: rate of stochastic depth of the last block; 0 leaves it as in pre-training.
        image_size: height and width of a crop in pixels, one number for a square; None for those
            of pre-training. The patches keep their size.
        short_side: what the shorter side of an image becomes, in pixels, before it is scaled and
            cut, and for judging; None for that of a crop.
        scale: from which factor to which a training image is scaled.
        most_of_one: a crop is drawn again where one class fills more of it.
        flip: mirror half of the crops.
        distort: change brightness, contrast, saturation and hue of some; left out where images have
            neither one nor three channels.
        width: channels of UPerNet.
        norm: of the head: "batch" as in the papers, or "group", which needs no large batch.
        baseline: also train without the pre-trained weights.
        num_test_images: test images to judge; None for all.
        precision: as ``train.precision`` of a recipe.

    Raises: RecipeError for a list that is empty or has a value twice, or if options do not fit
        each other or the patches.
    Source: BEiT, arXiv 2106.08254, and CAE, arXiv 2202.03026, appendices and code: UPerNet on
        ADE20K with crops of 512 px, 160,000 steps of 16, warm-up 1,500, scale 0.5 to 2, layer decay
        0.65, drop path 0.1 and weight decay 0.05; BEiT's rate is 7e-4, CAE's 1e-4 to 3e-4.
    """

    needs_masks = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        head: HeadName = "linear",
        frozen: Literal["auto"] | bool = "auto",
        label_fractions: tuple[Fraction, ...] = (1.0,),
        seeds: Count = 3,
        total_steps: Count = 1_000,
        batch_size: Annotated[int, Interval(ge=2, le=1_000_000)] = 16,
        lrs: tuple[Positive, ...] = (1e-3,),
        warmup_steps: AnyCount = 50,
        power: NonNegative = 1.0,
        weight_decay: NonNegative = 0.05,
        layer_decay: Fraction | None = None,
        drop_path: Rate = 0.0,
        image_size: Size | tuple[Size, Size] | None = None,
        short_side: Size | None = None,
        scale: tuple[Positive, Positive] = (0.5, 2.0),
        most_of_one: Ratio = 0.75,
        flip: bool = True,
        distort: bool = True,
        width: Size = 512,
        norm: Literal["batch", "group"] = "batch",
        baseline: bool = True,
        num_test_images: Count | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        distinct(_NAME, lrs=lrs, label_fractions=label_fractions)
        if scale[0] > scale[1]:
            raise RecipeError(f"evaluator '{_NAME}', scale: must ascend, but is {list(scale)}.")
        self.heads = Heads(head, (head == "linear") if frozen == "auto" else frozen, width, norm)
        self.label_fractions = label_fractions
        self.seeds = seeds
        self.lrs = lrs
        self.power = power
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.channels = geometry.channels
        self.grid = grid_of(image_size, geometry.grid, _NAME)
        self.short_side = short_side or min(self.grid.image_size)
        self.scale = scale
        self.most_of_one = most_of_one
        self.flip = flip
        # Of other images it is not known what their colours are.
        self.distort = distort and geometry.channels in (1, 3)
        starts = ("pretrained", "random") if self.heads.frozen else TRAINED
        self.inits = starts if baseline else starts[:1]
        self.num_test_images = num_test_images
        self.train = TrainSection(
            total_steps=total_steps,
            batch_size=batch_size,
            optimizer="adamw",
            lr=lrs[0],
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            precision=precision,
        )

    def check(self, subject: Subject) -> None:
        """Refuses data without masks, too few of them for a search, and encoders without maps.

        Raises: DataError, RecipeError.
        """
        subsets = self.subsets(subject)
        if subsets.searches:
            for row in subsets.rows(self.inits[0], [subject.seed]):
                subsets.development(row)
        self._try(self._network(subject, Cell("pretrained", subject.seed)))

    def work(self, subject: Subject) -> Work:
        """Tells how long everything takes, from a few steps and images."""
        subsets = self.subsets(subject)
        sizes = subsets.sizes(subsets.seeds, len(self.lrs))
        trainings = len(self.inits) * len(sizes)
        trained = trainings * (self.train.total_steps or 0) * self.train.batch_size
        judged = len(self.inits) * sum(judged for _, judged in sizes)
        row = subsets.rows(self.inits[0], [subject.seed])[0]
        network = self._network(subject, row)
        trainer = self.trainer(subject, subsets)
        a_crop, an_image = trainer.seconds(network, row, subsets.train(row), subsets.test)
        return Work(seconds=trained * a_crop + judged * an_image)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``miou``, ``pixel_accuracy`` and ``mean_accuracy`` by fraction, start and seed."""
        subsets = self.subsets(subject)
        trainer = self.trainer(subject, subsets)
        table = Table(
            subject,
            _NAME,
            subsets.test,
            ("miou", "pixel_accuracy", "mean_accuracy"),
            view=trainer.crops.view,
        )
        found = train_rows(
            table,
            subsets,
            trainer,
            partial(self._score, table),
            inits=self.inits,
            lrs=self.lrs,
            protocol=self._protocol(),
        )
        self._tell_absent(subject, found)
        return found

    def subsets(self, subject: Subject) -> Subsets:
        """Returns which images are trained on and judged."""
        train, test = masks_in(subject.train, subject.test, _NAME)
        return Subsets(
            # As images of one class: masks have no class to draw equally from.
            labels=Labels(
                annotated(train, len(subject.train)), annotated(test, len(subject.test)), 1
            ),
            fractions=self.label_fractions,
            seeds=range(subject.seed, subject.seed + self.seeds),
            num_test_images=self.num_test_images,
            searches=len(self.lrs) > 1,
        )

    def backbone(self, pretrainer: Pretrainer) -> DenseBackbone:
        """Returns the network that gives maps, with the weights of ``pretrainer``.

        Raises: RecipeError if the encoder has none, or none for these sizes.
        """
        backbone = pretrainer.encoder.dense(self.grid)
        if self.drop_path:
            backbone.set_drop_path(self.drop_path)
        return backbone

    def view(self, subject: Subject) -> View:
        """Returns size and normalisation of a crop."""
        return replace(subject.view, image_size=self.grid.image_size)

    def trainer(self, subject: Subject, subsets: Subsets) -> SegmentationTrainer:
        """Returns what trains and judges networks."""
        return SegmentationTrainer(
            train=subject.train,
            test=subject.test,
            crops=Crops(
                source=subject.train,
                index=subsets.test[:0],
                view=self.view(subject),
                side=self.short_side,
                scale=self.scale,
                most_of_one=self.most_of_one,
                flip=self.flip,
                distort=self.distort,
                batch_size=self.train.batch_size,
                seed=subject.seed,
            ),
            section=self.train,
            power=self.power,
            layer_decay=self.layer_decay,
            device=subject.device,
            workers=subject.workers,
            shown=Shown.some_of(subject.workdir, subsets.test),
            shown_of=(subject.seed, max(self.label_fractions)),
        )

    def _score(
        self, table: Table, cell: Cell, fitted: Tensor, judged: Tensor, train: Call
    ) -> Score:
        """Trains on ``fitted`` and judges ``judged``, unless that was done before."""
        subject = table.subject
        with table.lock:  # new weights come from the one random state of all threads
            network = self._network(subject, cell)
            weights = digest(network)
        section = self.train.model_copy(update=cell.setting)
        train_masks, test_masks = subject.train.masks, subject.test.masks
        assert train_masks is not None
        assert test_masks is not None
        depends_on = {
            "weights": weights,
            "masks": [train_masks.fingerprint, test_masks.fingerprint],
            "cell": [*cell.record.values(), self.num_test_images],
            "train": section.model_dump(),
            "options": self._protocol(),
        }
        return table.score(
            cell, depends_on, lambda: train(network, cell, fitted, judged), judged=judged
        )

    def _network(self, subject: Subject, cell: Cell) -> Segmenter:
        masks = subject.train.masks
        assert masks is not None
        devices = [subject.device] if subject.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            start = start_of(cell, subject)
            # New layers begin alike in both starts.
            torch.manual_seed(cell.seed)
            network = self.heads.on(self.backbone(start), len(masks.classes))
        network = network.to(subject.device)
        return network.to(memory_format=torch.channels_last)

    def _protocol(self) -> dict[str, Plain]:
        height, width = self.grid.image_size
        return {
            **self.heads.protocol,
            **self.train.model_dump(include=_PROTOCOL),
            **named(self.lrs),
            "power": self.power,
            "layer_decay": self.layer_decay,
            "drop_path": self.drop_path,
            "crop": f"{width} x {height}",
            "short_side": self.short_side,
            "scale": f"{self.scale[0]:g} to {self.scale[1]:g}",
            "most_of_one": self.most_of_one,
            "flip": self.flip,
            "distort": self.distort,
        }

    def _try(self, network: Segmenter) -> None:
        """Refuses maps that a head cannot stand on, found out without computing anything."""
        size, count = self.grid.image_size, min(4, self.train.batch_size)
        image = torch.empty(count, self.channels, *size, device="meta")
        mask = torch.empty(count, *size, dtype=torch.int64, device="meta")
        network.to("meta").train().loss(image, mask)

    def _tell_absent(self, subject: Subject, results: Sequence[Result]) -> None:
        """Names classes that no judged mask shows: they have no score and do not count."""
        masks = subject.test.masks
        assert masks is not None
        parts = next((result.parts for result in results if result.parts), {})
        absent = [name for name in masks.classes if name not in parts]
        if absent:
            more = ", ..." if len(absent) > _NAMED else ""
            subject.report(
                f"{_NAME}: {len(absent)} of {len(masks.classes)} classes are in no judged mask and "
                f"left out of the mean: {', '.join(absent[:_NAMED])}{more}"
            )
