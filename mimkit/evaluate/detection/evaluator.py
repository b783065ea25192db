"""Detection and instance segmentation, always beside the same network without pre-training."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.errors import RecipeError
from mimkit.evaluate.at_once import Call
from mimkit.evaluate.base import Evaluator, Plain, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table, digest
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.conv_norm import Norm
from mimkit.evaluate.detection.annotated import annotated, objects_of, require_objects
from mimkit.evaluate.detection.average_precision import metric_names
from mimkit.evaluate.detection.heads import BoxHead, BoxLoss
from mimkit.evaluate.detection.network import Detector, Settings
from mimkit.evaluate.detection.placing import Variation
from mimkit.evaluate.detection.trainer import DetectionTrainer, Schedule, forked
from mimkit.evaluate.fractions import Subsets
from mimkit.evaluate.grids import grid_of
from mimkit.evaluate.rows import train_rows
from mimkit.evaluate.score import Score
from mimkit.evaluate.search import named
from mimkit.evaluate.shown import Shown
from mimkit.evaluate.starts import TRAINED, start_of
from mimkit.parts.bounds import AnyCount, Count, Fraction, NonNegative, Positive, Rate, Size
from mimkit.parts.records import Geometry
from mimkit.recipe.sections import TrainSection

_NAME: Final = "detection"
_PROTOCOL: Final = {"total_steps", "batch_size", "warmup_steps", "weight_decay"}
_FEWEST: Final = 16
"""Images of a step below which batch norm in new layers is refused."""
_TIMED: Final = 2


class Detection(Evaluator):
    """Average precision of boxes, and of masks where outlines are known: Mask R-CNN.

    torchvision's Mask R-CNN stands on the encoder's maps. Maps of a plain transformer become a
    pyramid of a quarter, half, all and double of its stride; those of a hierarchical network are
    taken as they are; an FPN follows. Images are resized to fit into one frame, padded at the right
    and below, and judged at their full size by COCO's measure.

    Subsets, order, crops and new layers of a seed are the same for every start. With several rates
    each is tried on a development split of the row's own images.

    Args:
        geometry: the patch grid of pre-training.
        label_fractions: shares of the annotated images to train on.
        seeds: how often, each with its own subset, order and new layers.
        total_steps: optimizer steps of one training; the same for every fraction.
        batch_size: images of a step.
        accumulate: pieces into which a batch is cut to spare memory; must divide it. Batch norm
            sees one piece.
        lrs: learning rates of AdamW to choose from.
        schedule: after the warm-up, "cosine" down to 0, or "step": a tenth at 9/12 of the steps,
            and once more at 11/12.
        warmup_steps: steps of linear warm-up.
        weight_decay: not applied to biases and norms.
        layer_decay: factor of the learning rate per layer below the last; None for one rate.
        drop_path: rate of stochastic depth of the last block, rising linearly from 0; 0 leaves it
            as in pre-training.
        frozen: whether the encoder's weights stay; the baseline is then a frozen random encoder.
        image_size: height and width of the frame in pixels, or one number for a square; None for
            those of pre-training. The patches keep their size, so there are more of them.
        scale: least and largest size of a training image, 1 being where it just fits into the
            frame; what is larger is cropped, what is smaller is padded.
        flip: mirror every other training image.
        masks: "auto": predict masks where every object has an outline; "none": boxes alone.
        box_head: "mlp": two linear layers; "conv": four convolutions with norm, and one linear.
        box_loss: "smooth_l1" of offsets, or "giou" of boxes with weight 10.
        norm: of the convolutions of pyramid, FPN and heads: "group", or "batch" for batches of 16
            images or more. Batch norm inside an encoder is measured on whole images, then kept.
        fpn_channels: width of every map.
        head_width: width of the linear layers of the box head.
        num_sampled: proposals of an image that the heads learn from.
        anchor_scale: side of the anchors in cells of their map; None: so that a tenth of the
            objects trained on is smaller than the smallest, but from 2 to the 8 of the papers.
        max_detections: of an image; COCO's number is 100.
        baseline: also train without pre-training, with the same search, seeds and subsets.
        num_test_images: test images to judge; None for all.
        precision: as ``train.precision`` of a recipe.

    Raises: RecipeError for a list that is empty or has a value twice, or if options do not fit
        each other or the patches.
    Source: Mask R-CNN, arXiv 1703.06870; ViT pyramid and step schedule: BEiT and CAE (2202.03026),
        whose box head is "conv" with batch norm over all devices and the loss "giou". Crowds are
        not learned from, but proposals on them count as wrong, as in torchvision's own training.
    """

    needs_objects = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        label_fractions: tuple[Fraction, ...] = (1.0,),
        seeds: Count = 3,
        total_steps: Count = 10_000,
        batch_size: Count = 16,
        accumulate: Count = 1,
        lrs: tuple[Positive, ...] = (3e-4,),
        schedule: Schedule = "cosine",
        warmup_steps: AnyCount = 250,
        weight_decay: NonNegative = 0.05,
        layer_decay: Fraction | None = None,
        drop_path: Rate = 0.0,
        frozen: bool = False,
        image_size: Size | tuple[Size, Size] | None = None,
        scale: tuple[Positive, Positive] = (0.5, 1.5),
        flip: bool = True,
        masks: Literal["auto", "none"] = "auto",
        box_head: BoxHead = "mlp",
        box_loss: BoxLoss = "smooth_l1",
        norm: Norm = "group",
        fpn_channels: Size = 256,
        head_width: Size = 1024,
        num_sampled: Size = 512,
        anchor_scale: Positive | None = None,
        max_detections: Size = 100,
        baseline: bool = True,
        num_test_images: Count | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        distinct(_NAME, lrs=lrs, label_fractions=label_fractions)
        if scale[0] > scale[1]:
            raise RecipeError(f"evaluator '{_NAME}', scale: must ascend, but is {list(scale)}.")
        if batch_size % accumulate:
            raise RecipeError(
                f"evaluator '{_NAME}', accumulate: must divide batch_size ({batch_size}), but is "
                f"{accumulate}."
            )
        if norm == "batch" and batch_size // accumulate < _FEWEST:
            raise RecipeError(
                f"evaluator '{_NAME}', norm: 'batch' needs at least {_FEWEST} images at once, "
                f"since statistics of {batch_size // accumulate} are noise. Use norm = 'group', or "
                "a larger batch_size."
            )
        self.label_fractions = label_fractions
        self.seeds = seeds
        self.accumulate = accumulate
        self.lrs = lrs
        self.schedule = schedule
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.frozen = frozen
        self.grid = grid_of(image_size, geometry.grid, _NAME)
        self.variation = Variation(scale, flip)
        self.masks = masks
        self.heads = Settings(
            box_head=box_head,
            box_loss=box_loss,
            norm=norm,
            fpn_channels=fpn_channels,
            head_width=head_width,
            num_sampled=num_sampled,
            max_detections=max_detections,
        )
        self.anchor_scale = anchor_scale
        trained = ("pretrained", "random") if frozen else TRAINED
        self.inits = trained if baseline else trained[:1]
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
        """Refuses data without objects, too few for a search, and an encoder without maps.

        Raises: DataError, RecipeError.
        """
        subsets = self.subsets(subject)
        require_objects(subject.test, subsets.test, "images to judge", _NAME)
        for row in subsets.rows("pretrained", subsets.seeds):
            require_objects(subject.train, subsets.train(row), "images to train on", _NAME)
            if subsets.searches:
                held = subsets.development(row)[1]
                require_objects(subject.train, held, "development images", _NAME)
        self.network(subject, Cell("pretrained", subject.seed))

    def work(self, subject: Subject) -> Work:
        """Times a step with few images, and as many that are judged, for all of them."""
        subsets = self.subsets(subject)
        sizes = subsets.sizes(subsets.seeds, len(self.lrs))
        trainer = replace(self.trainer(subject), workers=0)
        cell = Cell("pretrained", subject.seed)
        network = self.network(subject, cell)
        few = subsets.train(Cell("pretrained", subject.seed, 1.0))[:_TIMED]
        section = self.train.model_copy(update={"total_steps": 1, "batch_size": len(few)})
        once = replace(trainer, section=section, accumulate=1)
        with forked(subject.device):
            start = time.perf_counter()
            scale = once.fit(network, cell, few)
            trained = time.perf_counter()
            once.judge(network, replace(cell, split="development"), few, scale)
            judged = time.perf_counter()
        steps = len(sizes) * (self.train.total_steps or 0) * self.train.batch_size
        images = sum(count for _, count in sizes)
        each = (trained - start) * steps + (judged - trained) * images
        return Work(seconds=len(self.inits) * each / len(few))

    def run(self, subject: Subject) -> list[Result]:
        """Gives average precision by fraction, start and seed."""
        subsets = self.subsets(subject)
        trainer = self.trainer(subject)
        table = Table(
            subject,
            _NAME,
            subsets.test,
            metric_names(masks=trainer.settings.masks),
            view=trainer.view,
        )
        return train_rows(
            table,
            subsets,
            trainer,
            partial(self._score, table),
            inits=self.inits,
            lrs=self.lrs,
            protocol=self._protocol(trainer),
        )

    def subsets(self, subject: Subject) -> Subsets:
        """Returns which images are trained on and judged: of those that are annotated.

        Raises: DataError if there are none, or no object.
        """
        return Subsets(
            labels=annotated(subject, _NAME),
            fractions=self.label_fractions,
            seeds=range(subject.seed, subject.seed + self.seeds),
            num_test_images=self.num_test_images,
            searches=len(self.lrs) > 1,
        )

    def trainer(self, subject: Subject) -> DetectionTrainer:
        """Returns what trains and judges a cell's network."""
        return DetectionTrainer(
            train=subject.train.to("cpu"),
            test=subject.test.to("cpu"),
            view=replace(subject.view, image_size=self.grid.image_size),
            variation=self.variation,
            settings=self.settings(subject),
            section=self.train,
            schedule=self.schedule,
            layer_decay=self.layer_decay,
            anchor_scale=self.anchor_scale,
            accumulate=self.accumulate,
            device=subject.device,
            workers=subject.workers,
            shown=Shown.some_of(subject.workdir, self.subsets(subject).test),
            shown_of=(subject.seed, max(self.label_fractions)),
        )

    def settings(self, subject: Subject) -> Settings:
        """Returns what a detector of these data is made of."""
        objects = [objects_of(source) for source in (subject.train, subject.test)]
        masks = self.masks == "auto" and all(each.has_regions for each in objects)
        return replace(self.heads, num_classes=len(objects[0].classes), masks=masks)

    def network(self, subject: Subject, cell: Cell) -> Detector:
        """Builds a cell's network, with the weights of its start.

        Raises: RecipeError if the encoder has no maps, or not of this size.
        """
        with forked(subject.device):
            start = start_of(cell, subject)
            # New layers begin alike in every start.
            torch.manual_seed(cell.seed)
            backbone = start.encoder.dense(self.grid)
            if self.drop_path:
                backbone.set_drop_path(self.drop_path)
            network = Detector(backbone, self.settings(subject), frozen=self.frozen)
        return network.to(subject.device)

    def _score(
        self, table: Table, cell: Cell, fitted: Tensor, judged: Tensor, train: Call
    ) -> Score:
        """Trains on ``fitted`` by a trainer or what calls one, unless that was done before."""
        subject = table.subject
        with table.lock:  # new weights come from the one random state of all threads
            network = self.network(subject, cell)
            weights = digest(network)
        section = self.train.model_copy(update=cell.setting)
        depends_on = {
            "weights": weights,
            "cell": [*cell.record.values(), self.num_test_images],
            "train": [section.model_dump(), asdict(self.variation)],
            "objects": [objects_of(each).fingerprint for each in (subject.train, subject.test)],
            "options": [
                self.schedule,
                self.accumulate,
                self.layer_decay,
                self.drop_path,
                self.frozen,
                self.anchor_scale,
                asdict(self.settings(subject)),
            ],
        }
        return table.score(
            cell,
            depends_on,
            lambda: train(network, cell, fitted, judged),
            judged=judged,
        )

    def _protocol(self, trainer: DetectionTrainer) -> dict[str, Plain]:
        height, width = self.grid.image_size
        return {
            **self.train.model_dump(include=_PROTOCOL),
            **named(self.lrs),
            "schedule": self.schedule,
            "layer_decay": self.layer_decay,
            "drop_path": self.drop_path,
            "frozen": self.frozen,
            "image_size": f"{height} x {width}",
            "scale": "{:g} to {:g}".format(*self.variation.scale),
            "flip": self.variation.flip,
            "anchor_scale": self.anchor_scale,
            **asdict(trainer.settings),
        }
