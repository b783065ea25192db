"""Fine-tuning at label fractions, always beside the same network without pre-training."""

import math
from dataclasses import asdict, replace
from functools import partial
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.data.pixels.augment import Augment
from mimkit.errors import RecipeError
from mimkit.evaluate.at_once import Call
from mimkit.evaluate.base import Evaluator, Plain, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table, digest
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.classifier import Classifier, backbone_of, running_norms
from mimkit.evaluate.fractions import Labels, Subsets, labels_of
from mimkit.evaluate.mixing import Mixing
from mimkit.evaluate.randaugment import RandAugment
from mimkit.evaluate.rows import train_rows
from mimkit.evaluate.score import Score
from mimkit.evaluate.search import named
from mimkit.evaluate.starts import TRAINED, start_of
from mimkit.evaluate.trainer import Trainer, statistics_batches
from mimkit.parts.bounds import AnyCount, Count, Fraction, NonNegative, Positive, Rate, Ratio, Size
from mimkit.parts.encoder import Backbone
from mimkit.parts.records import Geometry, Grid, View
from mimkit.recipe.sections import TrainSection
from mimkit.train.step import Pretrainer

_NAME: Final = "finetune"
_STANDARD: Final = Augment(crop="resized", crop_scale=(0.5, 1.0))
_PROTOCOL: Final = {"total_steps", "batch_size", "optimizer", "warmup_steps", "weight_decay"}


_RGB_ALONE: Final = (
    "evaluator 'finetune', rand_augment: knows 8-bit RGB images alone, but {}. Leave it out: "
    "--set evaluate.N.rand_augment=none, N being its place among the evaluators, from 0"
)


class FineTune(Evaluator):
    """Accuracy after training the whole network on a fraction of the labels.

    The learning rate is chosen on a development split of the labelled images, for each fraction,
    seed and start anew, so that no number has seen more labels than it says; then the network is
    trained on all labelled images. Subsets, order, augmentation and candidates of a seed are the
    same for both starts. With several rates a seed costs one training more for each of them. On a
    GPU several are trained at once if they fit (`mimkit.evaluate.at_once`), with the same numbers.

    Args:
        geometry: the patch grid of pre-training.
        label_fractions: shares of the labels to train on.
        seeds: how often, each with its own subset, order and new layers.
        network: "backbone": what the encoder offers; "pooled": the encoder's features under the
            head's own learned pooling.
        total_steps: optimizer steps of one training; the same for every fraction, so that few
            labels are not starved of updates.
        batch_size: images of a step.
        optimizer: SGD with Nesterov momentum 0.9, or AdamW.
        lrs: learning rates to choose from.
        warmup_steps: steps of linear warm-up before the cosine.
        weight_decay: not applied to biases and norms.
        min_lr: learning rate at the end of the cosine.
        label_smoothing: share of the target that goes to all classes alike.
        layer_decay: factor of the learning rate per layer below the classifier; None for one
            rate. It is for pre-trained layers, but the baseline gets it too: all alike.
        drop_path: rate of stochastic depth of the last block, rising linearly from 0; 0 leaves it
            as in pre-training.
        augmentation: how training images vary before RandAugment: as in the recipe's
            "pretraining", or "standard": flipped, and cropped to half their area or more, the
            same whatever the recipe.
        mixup: parameter of mixup's beta distribution; 0 for none.
        cutmix: parameter of CutMix's; 0 for none. With both, every batch draws one of them.
        rand_augment: RandAugment of every image, as timm writes it, such as
            "rand-m9-mstd0.5-inc1"; None for none. As there, it replaces the colour jitter. It
            works on the CPU, in ``data.workers`` loader processes.
        random_erasing: probability that a rectangle of an image becomes noise.
        image_size: height and width to train and judge at, in pixels; None for those of
            pre-training. The patches keep their size, so there are more or fewer of them.
        recompute_batch_norm: measure the running statistics of the pre-trained network anew on
            whole images before training.
        baseline: also train from random weights, with the same search, seeds and subsets.
        num_test_images: test images to classify, all classes alike; None for all.
        precision: as ``train.precision`` of a recipe.

    Raises: RecipeError for a list that is empty or has a value twice, or if options do not fit
        each other or the patches.
    Source: label fractions and five runs: Selfie, arXiv 1906.02940, section 4. BEiT,
        arXiv 2106.08254, appendix: layer decay 0.65, drop path 0.1, label smoothing 0.1, mixup
        0.8, CutMix 1, RandAugment of magnitude 9 and deviation 0.5, random erasing 0.25 (none for
        CIFAR-100), least learning rate 1e-6, no clipping. Its repeated augmentation is left out,
        and crop and flip are those of the recipe's pre-training or "standard".
    """

    needs_labels = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        label_fractions: tuple[Fraction, ...] = (0.05, 0.1, 0.2, 1.0),
        seeds: Count = 5,
        network: Literal["backbone", "pooled"] = "backbone",
        total_steps: Count = 10_000,
        batch_size: Count = 128,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lrs: tuple[Positive, ...] = (0.01, 0.03, 0.1),
        warmup_steps: AnyCount = 100,
        weight_decay: NonNegative = 1e-4,
        min_lr: NonNegative = 0.0,
        label_smoothing: Rate = 0.0,
        layer_decay: Fraction | None = None,
        drop_path: Rate = 0.0,
        augmentation: Literal["pretraining", "standard"] = "pretraining",
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        rand_augment: str | None = None,
        random_erasing: Ratio = 0.0,
        image_size: Size | None = None,
        recompute_batch_norm: bool = True,
        baseline: bool = True,
        num_test_images: Count | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        distinct(_NAME, lrs=lrs, label_fractions=label_fractions)
        if min_lr > min(lrs):
            raise RecipeError(
                f"evaluator '{_NAME}', min_lr: must be at most the least of lrs, {min(lrs):g}, but "
                f"is {min_lr:g}."
            )
        if (mixup or cutmix) and batch_size % 2:
            raise RecipeError(
                "evaluator 'finetune', batch_size: must be even with mixup or cutmix, which pair "
                f"the images of a batch, but is {batch_size}."
            )
        self.label_fractions = label_fractions
        self.seeds = seeds
        self.network = network
        self.lrs = lrs
        self.label_smoothing = label_smoothing
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.augmentation = augmentation
        self.mixup = mixup
        self.cutmix = cutmix
        if rand_augment is not None and geometry.channels != 3:
            raise RecipeError(_RGB_ALONE.format(f"data.channels is {geometry.channels}"))
        self.rand_augment = None if rand_augment is None else RandAugment(rand_augment)
        self.random_erasing = random_erasing
        self.grid = None if image_size is None else _grid_of(image_size, geometry.grid, network)
        self.recompute_batch_norm = recompute_batch_norm
        self.inits = TRAINED if baseline else TRAINED[:1]
        self.num_test_images = num_test_images
        self.train = TrainSection(
            total_steps=total_steps,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lrs[0],
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            min_lr=min_lr,
            precision=precision,
        )
        settings = {
            "min_lr": min_lr,
            "drop_path": drop_path,
            "augmentation": None if augmentation == "pretraining" else augmentation,
            "mixup": mixup,
            "cutmix": cutmix,
            "rand_augment": rand_augment,
            "random_erasing": random_erasing,
            "image_size": image_size,
        }
        # What is off is not named: an option that is new leaves known results comparable.
        self.settings: dict[str, Plain] = {key: value for key, value in settings.items() if value}
        self._has_norms: bool | None = None  # until the network is known

    def check(self, subject: Subject) -> None:
        """Refuses unlabelled data, too few labels for a search, and a head without pooling.

        Raises: DataError, RecipeError.
        """
        if self.rand_augment is not None and subject.train.scale is not None:
            raise RecipeError(_RGB_ALONE.format("they are in float32 (data.range)"))
        self.subsets(subject).check(subject, _NAME)
        self._measures_norms(subject)

    def _measures_norms(self, subject: Subject) -> bool:
        """Whether batch norm will be measured anew; builds the network, which may refuse."""
        if self._has_norms is None:
            with torch.random.fork_rng(devices=[]):
                self._has_norms = bool(running_norms(self.backbone(subject.pretrainer)))
        return self.recompute_batch_norm and self._has_norms

    def work(self, subject: Subject) -> Work:
        """Counts the images of all trainings, and those that are judged.

        Batch norm that is measured anew counts as judging.
        """
        subsets = self.subsets(subject)
        sizes = subsets.sizes(subsets.seeds, len(self.lrs))
        encoded = len(self.inits) * sum(judged for _, judged in sizes)
        if self._measures_norms(subject):
            encoded += sum(math.prod(statistics_batches(fitted)) for fitted, _ in sizes)
        trainings = len(self.inits) * len(sizes)
        total_steps = self.train.total_steps or 0
        return Work(encoded=encoded, trained=trainings * total_steps * self.train.batch_size)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` by fraction, start and seed."""
        subsets = self.subsets(subject)
        trainer = self._trainer(subject, subsets.labels)
        table = Table(subject, _NAME, subsets.test, view=trainer.view)
        return train_rows(
            table,
            subsets,
            trainer,
            partial(self._score, table),
            inits=self.inits,
            lrs=self.lrs,
            protocol=self._protocol(),
        )

    def subsets(self, subject: Subject) -> Subsets:
        """Returns which images are trained on and judged."""
        return Subsets(
            labels=labels_of(subject, _NAME),
            fractions=self.label_fractions,
            seeds=range(subject.seed, subject.seed + self.seeds),
            num_test_images=self.num_test_images,
            searches=len(self.lrs) > 1,
        )

    def _trainer(self, subject: Subject, labels: Labels) -> Trainer:
        return Trainer(
            train=subject.train,
            test=subject.test,
            labels=labels,
            view=self.view(subject),
            augment=self.augment(subject),
            rand_augment=self.rand_augment,
            mixing=self.mixing(labels.num_classes),
            section=self.train,
            label_smoothing=self.label_smoothing,
            layer_decay=self.layer_decay,
            recompute_batch_norm=self.recompute_batch_norm,
            device=subject.device,
            workers=subject.workers,
        )

    def _score(
        self, table: Table, cell: Cell, fitted: Tensor, judged: Tensor, train: Call
    ) -> Score:
        """Trains on ``fitted`` by a `Trainer` or what calls one, unless that was done before."""
        subject = table.subject
        with table.lock:  # new weights come from the one random state of all threads
            network = self._network(subject, cell)
            weights = digest(network)
        section = self.train.model_copy(update=cell.setting)
        depends_on = {
            "weights": weights,
            "cell": [*cell.record.values(), self.num_test_images],
            "train": [section.model_dump(), asdict(self.augment(subject))],
            "options": [
                self.label_smoothing,
                self.layer_decay,
                self.recompute_batch_norm,
                self.settings,
            ],
        }
        return table.score(
            cell,
            depends_on,
            lambda: train(network, cell, fitted, judged),
            judged=judged,
        )

    def _protocol(self) -> dict[str, Plain]:
        return {
            "network": self.network,
            **self.train.model_dump(include=_PROTOCOL),
            **named(self.lrs),
            "label_smoothing": self.label_smoothing,
            "layer_decay": self.layer_decay,
            "recompute_batch_norm": self.recompute_batch_norm,
            **self.settings,
        }

    def _network(self, subject: Subject, cell: Cell) -> Classifier:
        devices = [subject.device] if subject.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            start = start_of(cell, subject)
            # New layers begin alike in both starts.
            torch.manual_seed(cell.seed)
            network = Classifier(self.backbone(start), len(subject.train.classes))
        network = network.to(subject.device)
        return network.to(memory_format=torch.channels_last)

    def backbone(self, pretrainer: Pretrainer) -> Backbone:
        """Returns the network to train, with the weights of ``pretrainer``.

        Raises: RecipeError if the parts of the recipe cannot give it.
        """
        backbone = backbone_of(pretrainer, self.network, self.grid)
        if self.drop_path:
            backbone.set_drop_path(self.drop_path)
        return backbone

    def view(self, subject: Subject) -> View:
        """Returns the rendering of images that the network sees."""
        grid = self.grid
        return subject.view if grid is None else replace(subject.view, image_size=grid.image_size)

    def augment(self, subject: Subject) -> Augment:
        """Returns how training images vary before RandAugment."""
        augment = _STANDARD if self.augmentation == "standard" else subject.augment
        return augment if self.rand_augment is None else replace(augment, color_jitter=0.0)

    def mixing(self, num_classes: int) -> Mixing | None:
        """Returns what happens to every batch."""
        if not (self.mixup or self.cutmix or self.random_erasing):
            return None
        return Mixing(
            mixup=self.mixup,
            cutmix=self.cutmix,
            random_erasing=self.random_erasing,
            num_classes=num_classes,
        )


def _grid_of(image_size: int, grid: Grid, network: str) -> Grid:
    if image_size < 1 or image_size % grid.patch_size:
        raise RecipeError(
            "evaluator 'finetune', image_size: must be a multiple of the patches' "
            f"{grid.patch_size} px, but is {image_size}."
        )
    if network == "pooled":
        raise RecipeError(
            "evaluator 'finetune', image_size: must not be given with network 'pooled', whose "
            "pooling knows the grid of pre-training. Use network = 'backbone'."
        )
    side = image_size // grid.patch_size
    return Grid(side, side, grid.patch_size)
