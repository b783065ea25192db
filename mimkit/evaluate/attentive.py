"""A learned query looks over all frozen tokens; a linear classifier judges what it gathers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from mimkit.data.device import send
from mimkit.data.pixels.augment import Augment
from mimkit.errors import RecipeError
from mimkit.evaluate.base import Evaluator, Result, Subject, Work
from mimkit.evaluate.cells import Cells, cell_key, digest
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.cross_attention import AttentiveClassifier, choose_heads
from mimkit.evaluate.features import FEATURE_BATCH, evaluation_mode
from mimkit.evaluate.fractions import (
    Labels,
    development_split,
    labels_of,
    stratified_limit,
    stratified_subset,
    tell_gaps,
)
from mimkit.evaluate.frozen_tokens import FrozenTokens, gib_of, token_shape
from mimkit.evaluate.images import TrainingImages, WholeImages
from mimkit.evaluate.pixel_tokens import PixelTokens
from mimkit.evaluate.score import Score, are_right
from mimkit.evaluate.search import choose_rate, named
from mimkit.parts.bounds import AnyCount, Count, Fraction, NonNegative, Positive, Size
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Geometry
from mimkit.train.optim import learning_rate, set_learning_rate

_NAME: Final = "attentive_probe"
_MOMENTUM: Final = 0.9
_TRIAL_STEPS: Final = 3
_TRIAL_IMAGES: Final = 64
"""On a CPU, where a larger step takes as much longer."""


class AttentiveProbe(Evaluator):
    """Accuracy of one cross-attention over all tokens of frozen features, and a linear layer.

    All tokens are read, the class token and the patches; of encoders without a class token the
    patches alone. They are computed once and kept, if ``cache_gib`` allows. The learning rate is
    chosen on a development split of the labelled images, for each fraction, seed and start anew,
    so that no number has seen more labels than it says. Beside the pre-trained encoder stand the
    same with random weights, and pieces of the image with their positions (`PixelTokens`).

    Args:
        geometry: not needed.
        num_heads: attention heads; None: as many of up to 12 as divide the tokens' width.
        batch_norm: statistics when images are judged: "running" ones of training, or those of
            the "batch" of judged images, as published; then a result depends on who is judged
            together, here images in random order.
        total_steps: optimizer steps of one training.
        batch_size: images of a step.
        lrs: learning rates to choose from.
        warmup_steps: steps of linear warm-up before the cosine.
        label_fractions: shares of the labels to train on.
        seeds: how often, each with its own label subset, order, start and random baseline.
        num_test_images: test images to classify, all classes alike; None for all.
        cache_gib: keep all tokens on the device if they need at most so many GiB; else every
            batch is encoded anew, which takes longer and changes nothing.

    Raises: RecipeError for a list that is empty or has a value twice.
    Source: CAE, arXiv 2202.03026, section 4, and its code: query from zero, norms of their own
        for query, keys and values, no residual, no MLP, batch norm without scale, linear layer
        from deviation 0.01, Nesterov momentum 0.9, no weight decay. Differs: images are not
        augmented, the rate is chosen (published: 0.4 for 8192 images a step, which is 0.0125 for
        256, 90 epochs, its batch norm always takes the statistics of the batch), and it decays to
        0, not 1e-6. 0.3 has been chosen on few images and then failed on all.
    """

    needs_labels = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        num_heads: Size | None = None,
        batch_norm: Literal["running", "batch"] = "running",
        total_steps: Count = 1500,
        batch_size: Annotated[int, Interval(ge=2, le=1_000_000)] = 256,
        lrs: tuple[Positive, ...] = (0.01, 0.03, 0.1),
        warmup_steps: AnyCount = 100,
        label_fractions: tuple[Fraction, ...] = (1.0,),
        seeds: Count = 1,
        num_test_images: Count | None = None,
        cache_gib: NonNegative = 4.0,
    ) -> None:
        distinct(_NAME, lrs=lrs, label_fractions=label_fractions)
        self.num_heads = num_heads
        self.batch_norm = batch_norm
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.lrs = lrs
        self.warmup_steps = warmup_steps
        self.label_fractions = label_fractions
        self.seeds = seeds
        self.num_test_images = num_test_images
        self.cache_gib = cache_gib

    def check(self, subject: Subject) -> None:
        """Refuses unlabelled data, too few labels, and heads that do not divide the width.

        Raises: DataError, RecipeError.
        """
        labels = labels_of(subject, _NAME)
        searches = len(self.lrs) > 1
        tell_gaps(subject, _NAME, labels, self.label_fractions, searches=searches)
        judged = [stratified_limit(labels.test, self.num_test_images)]
        for fraction in self.label_fractions:
            subset = stratified_subset(labels.train, fraction, subject.seed)
            if searches:
                judged.append(development_split(labels.train, subset, subject.seed)[1])
        fewest = min(len(index) for index in judged)
        if self.batch_norm == "batch" and fewest < 2:
            raise RecipeError(
                f"evaluator '{_NAME}', batch_norm: 'batch' needs at least two images to judge, "
                f"but somewhere there is {fewest}. Use 'running', or give more labels."
            )
        _, width = token_shape(subject.pretrainer.encoder, subject)
        choose_heads(width, self.num_heads)

    def work(self, subject: Subject) -> Work:
        """Counts the images of the encoder and of random ones; the seconds are the probes' own.

        They come from a few steps on random tokens. Judging an image counts as a third of training
        on it.
        """
        labels = labels_of(subject, _NAME)
        seeds = range(subject.seed, subject.seed + self.seeds)
        num_test = len(stratified_limit(labels.test, self.num_test_images))
        shape = token_shape(subject.pretrainer.encoder, subject)
        a_pass = self._seconds_of_image(shape, labels, subject)
        encoded, seconds = 0, 0.0
        for some in (seeds, *([seed] for seed in seeds)):
            trained, judged = self._passes(labels, some)
            num_kept = len(self.training_images(labels.train, some)) + num_test
            kept = gib_of(num_kept, shape) <= self.cache_gib
            encoded += num_kept if kept else trained + judged
            seconds += (trained + judged / 3) * a_pass
        shape = token_shape(self._pixels(subject), subject)
        trained, judged = self._passes(labels, seeds)
        seconds += (trained + judged / 3) * self._seconds_of_image(shape, labels, subject)
        # One image of each random encoder shows the tokens' shape.
        return Work(encoded=encoded + len(seeds), seconds=seconds)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` of the encoder, of random ones, of pixels, by fraction and seed."""
        table = _Table(
            options=self,
            subject=subject,
            labels=labels_of(subject, _NAME),
            cells=Cells(subject.workdir / "cells.jsonl"),
        )
        seeds = range(subject.seed, subject.seed + self.seeds)
        results = table.probe("pretrained", subject.pretrainer.encoder, seeds)
        for seed in seeds:
            results += table.probe("random", subject.fresh(seed).encoder, [seed])
        return results + table.probe("pixels", self._pixels(subject), seeds)

    def _pixels(self, subject: Subject) -> PixelTokens:
        return PixelTokens(len(subject.view.mean), self.num_heads)

    def training_images(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Returns all images of which some fraction and seed reads the label, ascending."""
        subsets = [
            stratified_subset(labels, fraction, seed)
            for fraction in self.label_fractions
            for seed in seeds
        ]
        images: Tensor = torch.cat(subsets).unique()  # type: ignore[no-untyped-call]
        return images

    def _passes(self, labels: Labels, seeds: Sequence[int]) -> tuple[int, int]:
        """Counts the images that the probes of one encoder are trained on, and judge."""
        trainings = len(seeds) * len(self.label_fractions)
        judged = trainings * len(stratified_limit(labels.test, self.num_test_images))
        if len(self.lrs) > 1:
            for fraction, seed in product(self.label_fractions, seeds):
                subset = stratified_subset(labels.train, fraction, seed)
                held = development_split(labels.train, subset, seed)[1]
                trainings += len(self.lrs)
                judged += len(self.lrs) * len(held)
        return trainings * self.total_steps * self.batch_size, judged

    def _seconds_of_image(self, shape: tuple[int, int], labels: Labels, subject: Subject) -> float:
        """Measures steps on random tokens, each batch gathered as from those that are kept."""
        num_classes, device = labels.num_classes, subject.device
        size = min(self.batch_size, _TRIAL_IMAGES) if device.type == "cpu" else self.batch_size
        kept = torch.randn(size, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        rows = torch.arange(size, device=device)
        with torch.random.fork_rng(devices=[]):
            classifier = AttentiveClassifier(
                shape[1], num_classes, choose_heads(shape[1], self.num_heads)
            ).to(device)
        start = 0.0
        for step in range(1 + _TRIAL_STEPS):
            if step == 1:  # the first is slower
                start = time.perf_counter()
            classifier.zero_grad()
            loss = F.cross_entropy(classifier(kept[rows]), rows % num_classes)
            torch.autograd.backward(loss)
            float(loss.detach())  # waits for the device
        return (time.perf_counter() - start) / _TRIAL_STEPS / size


def even_batch(num_images: int, batch_size: int) -> int:
    """Returns the least size from ``batch_size`` on whose last batch is at least half full."""
    sizes = range(min(batch_size, num_images), num_images + 1)
    return next(s for s in sizes if num_images % s == 0 or 2 * (num_images % s) >= s)


@dataclass(frozen=True)
class _Cell:
    split: Literal["development", "test"]
    fraction: float
    init: str
    seed: int
    lr: float


@dataclass(frozen=True)
class _Encoded:
    """What one encoder, or what stands in for it, makes of both splits.

    Args:
        init: how its weights came about.
        weights: digest of them.
        width: D.
        train: the images that give their labels.
        test: the images to judge.
    """

    init: str
    weights: str
    width: int
    train: FrozenTokens
    test: FrozenTokens


@dataclass(frozen=True)
class _Table:
    """The cells of one evaluation; each is measured once, also if the run is killed between."""

    options: AttentiveProbe
    subject: Subject
    labels: Labels
    cells: Cells

    def probe(
        self, init: str, encoder: Encoder | PixelTokens, seeds: Sequence[int]
    ) -> list[Result]:
        """Measures one encoder.

        Args:
            init: how its weights came about.
            encoder: left in the mode it is in.
            seeds: of label subsets and trainings.
        """
        with evaluation_mode(encoder):
            encoded = self._encoded(init, encoder, seeds)
            return [
                self._result(encoded, fraction, seed)
                for fraction, seed in product(self.options.label_fractions, seeds)
            ]

    def _encoded(self, init: str, encoder: Encoder | PixelTokens, seeds: Sequence[int]) -> _Encoded:
        options, subject, labels = self.options, self.subject, self.labels
        train = options.training_images(labels.train, seeds)
        test = stratified_limit(labels.test, options.num_test_images)
        shape = token_shape(encoder, subject)
        gib = gib_of(len(train) + len(test), shape)
        keep = gib <= options.cache_gib
        if not keep:
            subject.report(
                f"{_NAME}: all tokens need {gib:.1f} GiB, more than cache_gib = "
                f"{options.cache_gib:g}, so every batch is encoded anew"
            )
        return _Encoded(
            init,
            digest(encoder),
            shape[1],
            FrozenTokens(encoder, subject, subject.train, train, keep),
            FrozenTokens(encoder, subject, subject.test, test, keep),
        )

    def _result(self, encoded: _Encoded, fraction: float, seed: int) -> Result:
        """Chooses a rate, trains on all labelled images and classifies the test images."""
        options = self.options
        subset = stratified_subset(self.labels.train, fraction, seed)

        def measure(lr: float, fitted: Tensor, judged: Tensor) -> Score:
            cell = _Cell("development", fraction, encoded.init, seed, lr)
            return self._measure(encoded, cell, fitted, judged)

        lr = choose_rate(options.lrs, self.labels.train, subset, seed, measure)
        test = encoded.test.index
        score = self._measure(
            encoded, _Cell("test", fraction, encoded.init, seed, lr), subset, test
        )
        return Result(
            evaluator=_NAME,
            metric="accuracy",
            value=score.accuracy,
            num_images=len(test),
            seed=seed,
            init=encoded.init,
            protocol={
                "label_fraction": fraction,
                "num_labels": len(subset),
                "num_test_images": len(test),
                "num_heads": options.num_heads or "most of up to 12",
                "batch_norm": options.batch_norm,
                "total_steps": options.total_steps,
                "batch_size": options.batch_size,
                "warmup_steps": options.warmup_steps,
                **named(options.lrs),
            },
            chosen={"lr": lr, "num_heads": choose_heads(encoded.width, options.num_heads)},
            image_scores=score.image_scores,
        )

    def _measure(self, encoded: _Encoded, cell: _Cell, fitted: Tensor, judged: Tensor) -> Score:
        """Trains on ``fitted`` and classifies ``judged``, unless that was done before."""
        subject, options = self.subject, self.options
        key = cell_key(
            weights=encoded.weights,
            data=[subject.train.fingerprint, subject.test.fingerprint, asdict(subject.view)],
            cell=[*asdict(cell).values(), options.num_test_images],
            train=[options.total_steps, options.batch_size, options.warmup_steps],
            model=[options.num_heads, options.batch_norm],
            **subject.rounding,
        )
        known = self.cells.get(key)
        if known is not None:
            return Score(known["accuracy"], known["loss"], known["image_scores"])
        classifier = self._fresh(encoded.width, cell.seed)
        self._train(classifier, encoded.train, cell, fitted)
        score = self._judge(classifier, encoded, cell, judged)
        tell = subject.report if cell.split == "test" else subject.detail
        tell(
            f"{_NAME}, {100 * cell.fraction:g} % of the labels, {cell.init}, seed {cell.seed}, "
            f"lr {cell.lr:g}: {100 * score.accuracy:.1f} % of {len(judged):,} {cell.split} images"
            + ("" if math.isfinite(score.loss) else " (diverged)")
        )
        self.cells.add(key, {**asdict(cell), **asdict(score)})
        return score

    def _fresh(self, width: int, seed: int) -> AttentiveClassifier:
        num_heads = choose_heads(width, self.options.num_heads)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            classifier = AttentiveClassifier(width, self.labels.num_classes, num_heads)
        return classifier.to(self.subject.device)

    def _train(
        self, classifier: AttentiveClassifier, frozen: FrozenTokens, cell: _Cell, fitted: Tensor
    ) -> None:
        subject, options = self.subject, self.options
        labels = self.labels.train.to(subject.device)
        images = TrainingImages(
            frozen.source,
            fitted,
            (subject.view,),
            options.batch_size,
            Augment.none(),
            cell.seed,
        )
        optimizer = torch.optim.SGD(
            classifier.parameters(), lr=cell.lr, momentum=_MOMENTUM, nesterov=True
        )
        for step, (index, tokens) in enumerate(frozen.stream(images, options.total_steps)):
            lr = learning_rate(
                step,
                total=options.total_steps,
                warmup=options.warmup_steps,
                peak=cell.lr,
                floor=0.0,
            )
            set_learning_rate(optimizer, lr)
            loss = F.cross_entropy(classifier(tokens), labels[send(index, subject.device)])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    @torch.no_grad()
    def _judge(
        self, classifier: AttentiveClassifier, encoded: _Encoded, cell: _Cell, judged: Tensor
    ) -> Score:
        subject = self.subject
        on_test = cell.split == "test"
        frozen = encoded.test if on_test else encoded.train
        labels = self.labels.test if on_test else self.labels.train
        size, places = FEATURE_BATCH, torch.arange(len(judged))
        if self.options.batch_norm == "batch":
            # Mixed, since sets often come sorted by class, and no batch much smaller than another.
            order = torch.Generator().manual_seed(cell.seed)
            places = torch.randperm(len(judged), generator=order)
            size = even_batch(len(judged), self.options.batch_size)
        images = WholeImages(frozen.source, judged[places], (subject.view,), size)
        correct = torch.empty(len(judged), dtype=torch.bool, device=subject.device)
        total_loss = torch.zeros((), device=subject.device)
        classifier.train(self.options.batch_norm == "batch")
        stream = frozen.stream(images, len(images))
        for place, (index, tokens) in zip(torch.split(places, size), stream, strict=True):
            truth = send(labels[index], subject.device)
            logits = classifier(tokens)
            correct[send(place, subject.device)] = are_right(logits, truth)
            total_loss += F.cross_entropy(logits, truth, reduction="sum")
        return Score.of(correct, float(total_loss) / len(judged))
