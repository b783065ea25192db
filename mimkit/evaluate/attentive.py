"""A learned query looks over all frozen tokens; a linear classifier judges what it gathers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from mimkit.data.device import send
from mimkit.data.pixels.augment import Augment
from mimkit.errors import RecipeError
from mimkit.evaluate.base import Evaluator, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table, digest
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.cross_attention import AttentiveClassifier, choose_heads
from mimkit.evaluate.features import FEATURE_BATCH, evaluation_mode
from mimkit.evaluate.fractions import Subsets, labels_of
from mimkit.evaluate.frozen_tokens import FrozenTokens, gib_of, token_shape
from mimkit.evaluate.images import TrainingImages, WholeImages
from mimkit.evaluate.pixel_tokens import PixelTokens
from mimkit.evaluate.score import Score, are_right
from mimkit.evaluate.search import choose_rate, named
from mimkit.evaluate.starts import Start, by_encoder, starts
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
        subsets = self.subsets(subject)
        subsets.check(subject, _NAME)
        fewest = min(judged for _, judged in subsets.sizes([subject.seed], len(self.lrs)))
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
        subsets = self.subsets(subject)
        num_classes = subsets.labels.num_classes
        shape = token_shape(subject.pretrainer.encoder, subject)
        a_pass = self._seconds_of_image(shape, num_classes, subject)
        encoded, seconds = 0, 0.0
        for some in by_encoder(subsets.seeds):
            trained, judged = self._passes(subsets, some)
            num_kept = len(subsets.union(some)) + len(subsets.test)
            kept = gib_of(num_kept, shape) <= self.cache_gib
            encoded += num_kept if kept else trained + judged
            seconds += (trained + judged / 3) * a_pass
        shape = token_shape(self.pixels(subject), subject)
        trained, judged = self._passes(subsets, subsets.seeds)
        seconds += (trained + judged / 3) * self._seconds_of_image(shape, num_classes, subject)
        # One image of each random encoder shows the tokens' shape.
        return Work(encoded=encoded + len(subsets.seeds), seconds=seconds)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` of the encoder, of random ones, of pixels, by seed and fraction."""
        subsets = self.subsets(subject)
        table = Table(subject, _NAME, subsets.test)
        return [
            result
            for start in starts(subject, subsets.seeds)
            for result in self._results(start, subsets, table)
        ]

    def subsets(self, subject: Subject) -> Subsets:
        """Returns which images are trained on and judged."""
        return Subsets(
            labels=labels_of(subject, _NAME),
            fractions=self.label_fractions,
            seeds=range(subject.seed, subject.seed + self.seeds),
            num_test_images=self.num_test_images,
            searches=len(self.lrs) > 1,
        )

    def pixels(self, subject: Subject) -> PixelTokens:
        """Returns what stands in for an encoder."""
        return PixelTokens(len(subject.view.mean), self.num_heads)

    def _results(self, start: Start, subsets: Subsets, table: Table) -> list[Result]:
        encoder = start.encoder or self.pixels(table.subject)
        with evaluation_mode(encoder):
            probes = _Probes(self, table, subsets, encoder, start.seeds)
            return [
                result
                for row in subsets.rows(start.init, start.seeds)
                for result in self._of_row(row, probes)
            ]

    def _of_row(self, row: Cell, probes: _Probes) -> list[Result]:
        lr, score = choose_rate(row, self.lrs, probes.subsets, probes.score)
        protocol = {
            **probes.subsets.protocol(row),
            "num_heads": self.num_heads or "most of up to 12",
            "batch_norm": self.batch_norm,
            "total_steps": self.total_steps,
            "batch_size": self.batch_size,
            "warmup_steps": self.warmup_steps,
            **named(self.lrs),
        }
        return probes.table.results(row, score, protocol, {"lr": lr, "num_heads": probes.num_heads})

    def _passes(self, subsets: Subsets, seeds: Sequence[int]) -> tuple[int, int]:
        """Counts the images that the probes of one encoder are trained on, and judge."""
        sizes = subsets.sizes(seeds, len(self.lrs))
        return len(sizes) * self.total_steps * self.batch_size, sum(judged for _, judged in sizes)

    def _seconds_of_image(
        self, shape: tuple[int, int], num_classes: int, subject: Subject
    ) -> float:
        """Measures steps on random tokens, each batch gathered as from those that are kept."""
        device = subject.device
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


class _Probes:
    """Trains and judges probes of what one encoder, or what stands in for it, makes of the images.

    Args:
        options: how.
        table: where scores are kept.
        subsets: which images there are.
        encoder: in evaluation mode.
        seeds: of the rows that will be asked for.
    """

    def __init__(
        self,
        options: AttentiveProbe,
        table: Table,
        subsets: Subsets,
        encoder: Encoder | PixelTokens,
        seeds: Sequence[int],
    ) -> None:
        self.options = options
        self.table = table
        self.subsets = subsets
        self.subject = subject = table.subject
        train = subsets.union(seeds)
        shape = token_shape(encoder, subject)
        gib = gib_of(len(train) + len(subsets.test), shape)
        keep = gib <= options.cache_gib
        if not keep:
            subject.report(
                f"{_NAME}: all tokens need {gib:.1f} GiB, more than cache_gib = "
                f"{options.cache_gib:g}, so every batch is encoded anew"
            )
        self.weights = digest(encoder)
        self.width = shape[1]
        self.num_heads = choose_heads(self.width, options.num_heads)
        self.train = FrozenTokens(encoder, subject, subject.train, train, keep)
        self.test = FrozenTokens(encoder, subject, subject.test, subsets.test, keep)

    def score(self, cell: Cell, fitted: Tensor, judged: Tensor) -> Score:
        """Trains on ``fitted`` and classifies ``judged``, unless that was done before."""
        options = self.options
        depends_on = {
            "weights": self.weights,
            "cell": [*cell.record.values(), options.num_test_images],
            "train": [options.total_steps, options.batch_size, options.warmup_steps],
            "model": [options.num_heads, options.batch_norm],
            **self.subject.rounding,
        }

        def measure() -> Score:
            classifier = self._fresh(cell.seed)
            self._train(classifier, cell, fitted)
            return self._judge(classifier, cell, judged)

        return self.table.score(cell, depends_on, measure, judged=judged)

    def _fresh(self, seed: int) -> AttentiveClassifier:
        num_classes = self.subsets.labels.num_classes
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            classifier = AttentiveClassifier(self.width, num_classes, self.num_heads)
        return classifier.to(self.subject.device)

    def _train(self, classifier: AttentiveClassifier, cell: Cell, fitted: Tensor) -> None:
        subject, options = self.subject, self.options
        peak = cell.setting["lr"]
        labels = self.subsets.labels.train.to(subject.device)
        images = TrainingImages(
            subject.train, fitted, (subject.view,), options.batch_size, Augment.none(), cell.seed
        )
        optimizer = torch.optim.SGD(
            classifier.parameters(), lr=peak, momentum=_MOMENTUM, nesterov=True
        )
        for step, (index, tokens) in enumerate(self.train.stream(images, options.total_steps)):
            lr = learning_rate(
                step, total=options.total_steps, warmup=options.warmup_steps, peak=peak, floor=0.0
            )
            set_learning_rate(optimizer, lr)
            loss = F.cross_entropy(classifier(tokens), labels[send(index, subject.device)])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    @torch.no_grad()
    def _judge(self, classifier: AttentiveClassifier, cell: Cell, judged: Tensor) -> Score:
        subject, labels, frozen = self.subject, self.subsets.labels.train, self.train
        if cell.split == "test":
            labels, frozen = self.subsets.labels.test, self.test
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
