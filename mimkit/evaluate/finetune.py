"""Fine-tuning at label fractions, always beside the same network without pre-training."""

import math
import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.data.pixels.augment import Augment
from mimkit.data.source import Source
from mimkit.errors import RecipeError
from mimkit.evaluate.at_once import Call, at_once
from mimkit.evaluate.base import Evaluator, Plain, Result, Subject, Work
from mimkit.evaluate.cells import Cells, cell_key, digest
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.classifier import (
    Classifier,
    backbone_of,
    recompute_batch_norm,
    running_norms,
    score_classifier,
    train_classifier,
)
from mimkit.evaluate.features import FEATURE_BATCH
from mimkit.evaluate.fractions import (
    Labels,
    development_split,
    labels_of,
    stratified_limit,
    stratified_subset,
    tell_gaps,
)
from mimkit.evaluate.images import TrainingImages, WholeImages
from mimkit.evaluate.mixing import Mixing
from mimkit.evaluate.randaugment import RandAugment
from mimkit.evaluate.score import Score
from mimkit.evaluate.search import choose_rate, named
from mimkit.parts.bounds import AnyCount, Count, Fraction, NonNegative, Positive, Rate, Ratio, Size
from mimkit.parts.encoder import Backbone
from mimkit.parts.records import Geometry, Grid, View
from mimkit.recipe.sections import TrainSection
from mimkit.train.step import Pretrainer

_STATISTICS_IMAGES: Final = 2048
_NAME: Final = "finetune"
_STANDARD: Final = Augment(crop="resized", crop_scale=(0.5, 1.0))
_PROTOCOL: Final = {"total_steps", "batch_size", "optimizer", "warmup_steps", "weight_decay"}


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
        self.rand_augment = None if rand_augment is None else RandAugment(rand_augment)
        self.random_erasing = random_erasing
        self.grid = None if image_size is None else _grid_of(image_size, geometry.grid, network)
        self.recompute_batch_norm = recompute_batch_norm
        self.inits = ("pretrained", "scratch") if baseline else ("pretrained",)
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
        labels = labels_of(subject, _NAME)
        searches = len(self.lrs) > 1
        tell_gaps(subject, _NAME, labels, self.label_fractions, searches=searches)
        for fraction in self.label_fractions:
            subset = stratified_subset(labels.train, fraction, subject.seed)
            if searches:
                development_split(labels.train, subset, subject.seed)
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
        labels = labels_of(subject, _NAME)
        num_test = len(stratified_limit(labels.test, self.num_test_images))
        trainings = encoded = 0
        seeds = range(subject.seed, subject.seed + self.seeds)
        for fraction in self.label_fractions:
            fitted, judged = [], 0
            for seed in seeds:
                subset = stratified_subset(labels.train, fraction, seed)
                fitted.append(len(subset))
                judged += num_test
                if len(self.lrs) > 1:
                    split = development_split(labels.train, subset, seed)
                    fitted += len(self.lrs) * [len(split[0])]
                    judged += len(self.lrs) * len(split[1])
            trainings += len(self.inits) * len(fitted)
            encoded += len(self.inits) * judged
            if self._measures_norms(subject):
                encoded += sum(math.prod(_statistics_batches(count)) for count in fitted)
        total_steps = self.train.total_steps or 0
        return Work(encoded=encoded, trained=trainings * total_steps * self.train.batch_size)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` by fraction, start and seed."""
        labels = labels_of(subject, _NAME)
        trainer = _Trainer(
            options=self,
            train=subject.train,
            test=subject.test,
            labels=labels,
            view=self.view(subject),
            augment=self.augment(subject),
            device=subject.device,
            workers=subject.workers,
        )
        table = _Table(self, subject, labels, Cells(subject.workdir / "cells.jsonl"))
        rows = [
            (fraction, init, seed)
            for fraction in self.label_fractions
            for seed in range(subject.seed, subject.seed + self.seeds)
            for init in self.inits  # both starts of a seed in turn: what is known is paired
        ]
        return at_once(
            trainer.one_of, table.result, rows, device=subject.device, report=subject.report
        )

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


def _statistics_batches(num_images: int) -> tuple[int, int]:
    """How many batches of how many images batch norm is measured on."""
    size = min(FEATURE_BATCH, num_images)
    return min(num_images, _STATISTICS_IMAGES) // size, size


@dataclass(frozen=True)
class _Cell:
    split: Literal["development", "test"]
    fraction: float
    init: str
    seed: int
    lr: float


@dataclass(frozen=True)
class _Trainer:
    """Trains and judges networks, here or in a process to which it is sent."""

    options: FineTune
    train: Source
    test: Source
    labels: Labels
    view: View
    augment: Augment
    device: torch.device
    workers: int

    def one_of(self, count: int) -> "_Trainer":
        """Returns the same trainer for one of so many processes, which share the loaders."""
        return replace(self, workers=math.ceil(self.workers / count))

    def __call__(self, network: Classifier, cell: _Cell, fitted: Tensor, judged: Tensor) -> Score:
        """Trains ``network`` on ``fitted`` and lets it classify ``judged``."""
        train = self.options.train.model_copy(update={"lr": cell.lr})
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._train(network, train, cell, fitted)
        on_test = cell.split == "test"
        return score_classifier(
            network,
            WholeImages(self.test if on_test else self.train, judged, (self.view,), FEATURE_BATCH),
            self.labels.test if on_test else self.labels.train,
            precision=train.precision,
            device=self.device,
            workers=self.workers,
        )

    def _train(self, network: Classifier, train: TrainSection, cell: _Cell, index: Tensor) -> None:
        options, source = self.options, self.train
        if options.rand_augment is not None:
            source = source.to("cpu")
        images = TrainingImages(
            source,
            index,
            (self.view,),
            train.batch_size,
            self.augment,
            cell.seed,
            options.rand_augment,
        )
        if cell.init == "pretrained" and options.recompute_batch_norm:
            count, size = _statistics_batches(len(index))
            whole = replace(images, batch_size=size, variation=Augment.none(), rand_augment=None)
            stream = whole.stream(count, workers=self.workers, device=self.device)
            recompute_batch_norm(network, (views["image"] for _, views in stream))
        train_classifier(
            network,
            images,
            self.labels.train,
            train,
            label_smoothing=options.label_smoothing,
            layer_decay=options.layer_decay,
            mixing=options.mixing(self.labels.num_classes),
            device=self.device,
            workers=self.workers,
        )


@dataclass(frozen=True)
class _Table:
    """The cells of one evaluation; each is measured once, also if the run is killed between."""

    options: FineTune
    subject: Subject
    labels: Labels
    cells: Cells
    lock: threading.Lock = field(default_factory=threading.Lock)

    def result(self, row: tuple[float, str, int], train: Call) -> Result:
        """Chooses a rate, trains on all labelled images and classifies the test images.

        Args:
            row: fraction of the labels, start and seed.
            train: a `_Trainer`, or what calls one.
        """
        options, (fraction, init, seed) = self.options, row
        subset = stratified_subset(self.labels.train, fraction, seed)

        def measure(lr: float, fitted: Tensor, judged: Tensor) -> Score:
            cell = _Cell("development", fraction, init, seed, lr)
            return self._measure(cell, fitted, judged, train)

        lr = choose_rate(options.lrs, self.labels.train, subset, seed, measure)
        test = stratified_limit(self.labels.test, options.num_test_images)
        score = self._measure(_Cell("test", fraction, init, seed, lr), subset, test, train)
        protocol = {
            "label_fraction": fraction,
            "num_labels": len(subset),
            "num_test_images": len(test),
            "network": options.network,
            **options.train.model_dump(include=_PROTOCOL),
            **named(options.lrs),
            "label_smoothing": options.label_smoothing,
            "layer_decay": options.layer_decay,
            "recompute_batch_norm": options.recompute_batch_norm,
            **options.settings,
        }
        return Result(
            evaluator=_NAME,
            metric="accuracy",
            value=score.accuracy,
            num_images=len(test),
            seed=seed,
            init=init,
            protocol=protocol,
            chosen={"lr": lr},
            image_scores=score.image_scores,
        )

    def _measure(self, cell: _Cell, fitted: Tensor, judged: Tensor, train: Call) -> Score:
        """Trains on ``fitted`` and classifies ``judged``, unless that was done before."""
        subject = self.subject
        with self.lock:  # new weights come from the one random state of all threads
            network = self._network(cell)
            key = self._key(cell, network)
            known = self.cells.get(key)
        if known is not None:
            return Score(known["accuracy"], known["loss"], known["image_scores"])
        score: Score = train(network, cell, fitted, judged)
        with self.lock:
            tell = subject.report if cell.split == "test" else subject.detail
            tell(
                f"finetune, {100 * cell.fraction:g} % of the labels, {cell.init}, seed "
                f"{cell.seed}, lr {cell.lr:g}: {100 * score.accuracy:.1f} % of {len(judged):,} "
                f"{cell.split} images" + ("" if math.isfinite(score.loss) else " (diverged)")
            )
            self.cells.add(key, {**asdict(cell), **asdict(score)})
        return score

    def _key(self, cell: _Cell, network: Classifier) -> str:
        options, subject = self.options, self.subject
        train = options.train.model_copy(update={"lr": cell.lr})
        return cell_key(
            weights=digest(network),
            data=[
                subject.train.fingerprint,
                subject.test.fingerprint,
                asdict(options.view(subject)),
            ],
            cell=[*asdict(cell).values(), options.num_test_images],
            train=[train.model_dump(), asdict(options.augment(subject))],
            options=[
                options.label_smoothing,
                options.layer_decay,
                options.recompute_batch_norm,
                options.settings,
            ],
        )

    def _network(self, cell: _Cell) -> Classifier:
        subject = self.subject
        devices = [subject.device] if subject.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            start = subject.pretrainer if cell.init == "pretrained" else subject.fresh(cell.seed)
            # New layers begin alike in both starts.
            torch.manual_seed(cell.seed)
            network = Classifier(self.options.backbone(start), self.labels.num_classes)
        network = network.to(subject.device)
        return network.to(memory_format=torch.channels_last)
