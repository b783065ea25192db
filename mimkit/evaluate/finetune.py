"""Fine-tuning at label fractions, always beside the same network without pre-training."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.data.views import Augment
from mimkit.errors import RecipeError
from mimkit.evaluate.base import Evaluator, Result, Subject
from mimkit.evaluate.cells import Cells, cell_key, digest
from mimkit.evaluate.classifier import (
    Classifier,
    Score,
    backbone_of,
    recompute_batch_norm,
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
)
from mimkit.evaluate.images import TrainingImages, WholeImages
from mimkit.parts.records import Geometry
from mimkit.recipe.sections import TrainSection

_STATISTICS_IMAGES: Final = 2048
_PROTOCOL: Final = {"total_steps", "batch_size", "optimizer", "warmup_steps", "weight_decay"}


class FineTune(Evaluator):
    """Accuracy after training the whole network on a fraction of the labels.

    The learning rate is chosen on a development split of the labelled images, once for each
    fraction and start, with the first seed; then every seed trains on all labelled images.
    Subsets, order and augmentation of a seed are the same for both starts.

    Args:
        geometry: not needed.
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
        label_smoothing: share of the target that goes to all classes alike.
        layer_decay: factor of the learning rate per layer below the classifier; None for one
            rate. It is for pre-trained layers, but the baseline gets it too: all alike.
        recompute_batch_norm: measure the running statistics of the pre-trained network anew on
            whole images before training.
        baseline: also train from random weights, with the same search, seeds and subsets.
        num_test_images: test images to classify, all classes alike; None for all.
        precision: as ``train.precision`` of a recipe.

    Raises: RecipeError if there is no fraction, seed or learning rate.
    Source: label fractions and five runs: Selfie, arXiv 1906.02940, section 4; layer-wise decay:
        BEiT, arXiv 2106.08254, appendix.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        label_fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 1.0),
        seeds: int = 5,
        network: Literal["backbone", "pooled"] = "backbone",
        total_steps: int = 10_000,
        batch_size: int = 128,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lrs: tuple[float, ...] = (0.01, 0.03, 0.1),
        warmup_steps: int = 100,
        weight_decay: float = 1e-4,
        label_smoothing: float = 0.0,
        layer_decay: float | None = None,
        recompute_batch_norm: bool = True,
        baseline: bool = True,
        num_test_images: int | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        if not label_fractions or not lrs or seeds < 1:
            raise RecipeError(
                "evaluator 'finetune': label_fractions and lrs must hold at least one value and "
                f"seeds be at least 1, but they are {label_fractions}, {lrs} and {seeds}."
            )
        self.label_fractions = label_fractions
        self.seeds = seeds
        self.network = network
        self.lrs = lrs
        self.label_smoothing = label_smoothing
        self.layer_decay = layer_decay
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
            precision=precision,
        )

    def check(self, subject: Subject) -> None:
        """Refuses unlabelled data, too few labels for a search, and a head without pooling.

        Raises: DataError, RecipeError.
        """
        labels = labels_of(subject, "finetune")
        for fraction in self.label_fractions:
            subset = stratified_subset(labels.train, fraction, subject.seed)
            if len(self.lrs) > 1:
                development_split(labels.train, subset, subject.seed)
        if self.network == "pooled":
            backbone_of(subject.pretrainer, "pooled")

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` by fraction, start and seed."""
        self.check(subject)
        labels = labels_of(subject, "finetune")
        table = _Table(self, subject, labels, Cells(subject.workdir / "cells.jsonl"))
        seeds = range(subject.seed, subject.seed + self.seeds)
        results = []
        for fraction in self.label_fractions:
            chosen = {init: table.choose_lr(fraction, init) for init in self.inits}
            for seed in seeds:  # both starts of a seed in turn: what is known is paired
                for init in self.inits:
                    results.append(table.result(fraction, init, seed, chosen[init]))
        return results


@dataclass(frozen=True)
class _Cell:
    split: Literal["development", "test"]
    fraction: float
    init: str
    seed: int
    lr: float


@dataclass(frozen=True)
class _Table:
    """The cells of one evaluation; each is measured once, also if the run is killed between."""

    options: FineTune
    subject: Subject
    labels: Labels
    cells: Cells

    def choose_lr(self, fraction: float, init: str) -> float:
        """Finds the learning rate that is best on the development split."""
        lrs = self.options.lrs
        if len(lrs) == 1:
            return lrs[0]
        seed = self.subject.seed
        subset = stratified_subset(self.labels.train, fraction, seed)
        fitted, development = development_split(self.labels.train, subset, seed)
        scores = {
            lr: self._measure(_Cell("development", fraction, init, seed, lr), fitted, development)
            for lr in lrs
        }
        # Few development images often tie: then the smaller loss decides.
        return max(lrs, key=lambda lr: (scores[lr].accuracy, -scores[lr].loss))

    def result(self, fraction: float, init: str, seed: int, lr: float) -> Result:
        """Trains on all labelled images and classifies the test images."""
        options = self.options
        subset = stratified_subset(self.labels.train, fraction, seed)
        test = stratified_limit(self.labels.test, options.num_test_images)
        score = self._measure(_Cell("test", fraction, init, seed, lr), subset, test)
        protocol = {
            "label_fraction": fraction,
            "num_labels": len(subset),
            "num_test_images": len(test),
            "network": options.network,
            **options.train.model_dump(include=_PROTOCOL),
            "lrs": ", ".join(f"{lr:g}" for lr in options.lrs),
            "label_smoothing": options.label_smoothing,
            "layer_decay": options.layer_decay,
            "recompute_batch_norm": options.recompute_batch_norm,
        }
        return Result(
            "finetune", "accuracy", score.accuracy, len(test), seed, init, protocol, {"lr": lr}
        )

    def _measure(self, cell: _Cell, fitted: Tensor, judged: Tensor) -> Score:
        """Trains on ``fitted`` and classifies ``judged``, unless that was done before."""
        subject, options = self.subject, self.options
        train = options.train.model_copy(update={"lr": cell.lr})
        devices = [subject.device] if subject.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            network = self._network(cell)
            key = cell_key(
                weights=digest(network),
                data=[subject.train.fingerprint, subject.test.fingerprint, asdict(subject.view)],
                cell=[*asdict(cell).values(), options.num_test_images],
                train=[train.model_dump(), asdict(subject.augment)],
                options=[
                    options.label_smoothing,
                    options.layer_decay,
                    options.recompute_batch_norm,
                ],
            )
            known = self.cells.get(key)
            if known is not None:
                return Score(known["accuracy"], known["loss"])
            self._train(network, train, cell, fitted)
        on_test = cell.split == "test"
        source = subject.test if on_test else subject.train
        score = score_classifier(
            network,
            WholeImages(source, judged, (subject.view,), FEATURE_BATCH),
            self.labels.test if on_test else self.labels.train,
            precision=train.precision,
            device=subject.device,
            workers=subject.workers,
        )
        subject.report(
            f"finetune, {100 * cell.fraction:g} % of the labels, {cell.init}, seed {cell.seed}, "
            f"lr {cell.lr:g}: {100 * score.accuracy:.1f} % of {len(judged):,} {cell.split} images"
            + ("" if math.isfinite(score.loss) else " (diverged)")
        )
        self.cells.add(key, {**asdict(cell), **asdict(score)})
        return score

    def _train(self, network: Classifier, train: TrainSection, cell: _Cell, index: Tensor) -> None:
        subject, options = self.subject, self.options
        device, workers = subject.device, subject.workers
        images = TrainingImages(
            subject.train, index, (subject.view,), train.batch_size, subject.augment, cell.seed
        )
        if cell.init == "pretrained" and options.recompute_batch_norm:
            size = min(FEATURE_BATCH, len(index))
            whole = replace(images, batch_size=size, variation=Augment.none())
            count = min(len(index), _STATISTICS_IMAGES) // size
            stream = whole.stream(count, workers=workers, device=device)
            recompute_batch_norm(network, (views["image"] for _, views in stream))
        train_classifier(
            network,
            images,
            self.labels.train,
            train,
            label_smoothing=options.label_smoothing,
            layer_decay=options.layer_decay,
            device=device,
            workers=workers,
        )

    def _network(self, cell: _Cell) -> Classifier:
        subject = self.subject
        start = subject.pretrainer if cell.init == "pretrained" else subject.fresh(cell.seed)
        # New layers begin alike in both starts.
        torch.manual_seed(cell.seed)
        backbone = backbone_of(start, self.options.network)
        network = Classifier(backbone, self.labels.num_classes).to(subject.device)
        return network.to(memory_format=torch.channels_last)
