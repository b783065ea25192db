"""Fine-tuning at label fractions, always beside the same network without pre-training."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.errors import RecipeError
from mimkit.evaluate.base import Evaluator, Result, Subject
from mimkit.evaluate.cells import Cells, cell_key, digest
from mimkit.evaluate.classifier import (
    Classifier,
    PooledBackbone,
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
from mimkit.parts.base import Backbone
from mimkit.parts.records import Geometry
from mimkit.recipe.sections import TrainSection
from mimkit.train.step import Pretrainer

_STATISTICS_IMAGES: Final = 2048


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

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` by fraction, start and seed."""
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
        return max(scores, key=scores.__getitem__)

    def result(self, fraction: float, init: str, seed: int, lr: float) -> Result:
        """Trains on all labelled images and classifies the test images."""
        options = self.options
        subset = stratified_subset(self.labels.train, fraction, seed)
        test = stratified_limit(self.labels.test, options.num_test_images)
        value = self._measure(_Cell("test", fraction, init, seed, lr), subset, test)
        protocol = {
            "label_fraction": fraction,
            "num_labels": len(subset),
            "network": options.network,
            "total_steps": options.train.total_steps,
            "batch_size": options.train.batch_size,
        }
        return Result("finetune", "accuracy", value, len(test), seed, init, protocol, {"lr": lr})

    def _measure(self, cell: _Cell, fitted: Tensor, judged: Tensor) -> float:
        subject, options = self.subject, self.options
        train = options.train.model_copy(update={"lr": cell.lr})
        key = cell_key(
            data=[subject.train.fingerprint, subject.test.fingerprint],
            weights=digest(subject.pretrainer) if cell.init == "pretrained" else "",
            cell=[*asdict(cell).values(), options.num_test_images],
            train=train.model_dump(),
            options=[
                options.network,
                options.label_smoothing,
                options.layer_decay,
                options.recompute_batch_norm,
            ],
        )
        known = self.cells.get(key)
        if known is not None:
            return float(str(known["accuracy"]))
        devices = [subject.device] if subject.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            network = self._network(cell.init, cell.seed)
            if cell.init == "pretrained" and options.recompute_batch_norm:
                recompute_batch_norm(network, self._whole_images(fitted))
            train_classifier(
                network,
                TrainingImages(
                    subject.train,
                    fitted,
                    (subject.view,),
                    train.batch_size,
                    subject.augment,
                    cell.seed,
                ),
                self.labels.train,
                train,
                label_smoothing=options.label_smoothing,
                layer_decay=options.layer_decay,
                device=subject.device,
                workers=subject.workers,
            )
        on_test = cell.split == "test"
        score = score_classifier(
            network,
            WholeImages(
                subject.test if on_test else subject.train,
                judged,
                (subject.view,),
                FEATURE_BATCH,
            ),
            self.labels.test if on_test else self.labels.train,
            device=subject.device,
            workers=subject.workers,
        )
        subject.report(
            f"finetune, {100 * cell.fraction:g} % of the labels, {cell.init}, seed {cell.seed}, "
            f"lr {cell.lr:g}: {100 * score.accuracy:.1f} % of {len(judged):,} {cell.split} images"
        )
        self.cells.add(key, {**asdict(cell), "accuracy": score.accuracy})
        return score.accuracy

    def _whole_images(self, index: Tensor) -> Iterator[Tensor]:
        """A sample of the labelled images, as they are: enough for batch statistics."""
        subject = self.subject
        chosen = index[:: math.ceil(len(index) / _STATISTICS_IMAGES)]
        images = WholeImages(subject.train, chosen, (subject.view,), FEATURE_BATCH)
        stream = images.stream(len(images), workers=subject.workers, device=subject.device)
        return (views[subject.view.name] for _, views in stream)

    def _network(self, init: str, seed: int) -> Classifier:
        subject = self.subject
        model = subject.pretrainer if init == "pretrained" else subject.fresh(seed)
        # New layers begin alike in both starts.
        torch.manual_seed(seed)
        backbone = _backbone(model, self.options.network)
        network = Classifier(backbone, self.labels.num_classes).to(subject.device)
        return network.to(memory_format=torch.channels_last)


def _backbone(model: Pretrainer, network: str) -> Backbone:
    if network == "backbone":
        return model.encoder.backbone()
    pooling = model.head.pooling()
    if pooling is None:
        raise RecipeError(
            "evaluator 'finetune', network: 'pooled' needs a head with a learned pooling, but "
            f"this recipe's head ({type(model.head).__name__}) has none. Use 'backbone'."
        )
    return PooledBackbone(model.encoder, pooling)
