"""A linear classifier on frozen features of one layer or of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.evaluate.base import Evaluator, Plain, Result, Subject, Work
from mimkit.evaluate.cells import Cells, cell_key, digest
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.features import Pool, extract_layers, pixels, pixels_width
from mimkit.evaluate.fractions import (
    development_split,
    labels_of,
    stratified_limit,
    stratified_subset,
    tell_gaps,
)
from mimkit.evaluate.logistic import Probe, fit, seconds_of_fit
from mimkit.evaluate.on_disk import OnDisk
from mimkit.evaluate.score import Score
from mimkit.parts.bounds import Count, Fraction, NonNegative
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Geometry

_NAME: Final = "linear_probe"
_CHOSEN: Final = "chosen on development images"
_PIXELS: Final = "pixels"
_PIXELS_SIDE: Final = 16
# On CIFAR-10, mean of weight decays from 0.1 (a quarter of the most) to 0.001 (nearly all).

Pooling = Literal["mean", "cls", "cls_mean"]
_PARTS: Final[Mapping[Pooling, tuple[Pool, ...]]] = {
    "mean": ("mean",),
    "cls": ("cls",),
    "cls_mean": ("cls", "mean"),
}


class LinearProbe(Evaluator):
    """Accuracy of multinomial logistic regression on standardised features.

    The problem is convex and solved by L-BFGS on all features at once, so there is no learning
    rate and no schedule to get wrong: only the weight decay is chosen, on the development split of
    the labelled images, and the classifier is then fitted to all of them.

    With all layers every one has a result of its own, and one more is that of the layer which is
    best on the development images, so that none is picked by its test images. The random
    baseline chooses its layer in the same way. Images that give their labels are encoded once for
    all layers and pools, and kept in main memory: images x layers x pools x D float32.

    The second baseline is the raw pixels, averaged down to 16 x 16 cells: of 2,000 or 16,000 images
    of CIFAR-10 a probe learns as much from them as from 32 x 32, in a fifth of the time. They have
    one layer and nothing to pool, so the same number stands beside every pool and beside the chosen
    layer.

    Args:
        geometry: not needed.
        layers: the encoder's features, or the tokens after each of its blocks.
        pools: features are the mean of the patches, the class token, or both side by side.
        weight_decays: the values to choose from; they multiply half the squared weights.
        label_fractions: shares of the labels to train on.
        seeds: how often, each with its own label subset and its own baselines.
        num_test_images: test images to classify, all classes alike; None for all.

    Raises: RecipeError for a list that is empty or has a value twice.
    Source: features are standardised as in MAE's linear probe (batch norm without affine,
        arXiv 2111.06377, appendix A). Differs: no augmentation, and at most 200 iterations
        of L-BFGS on all features instead of 90 epochs of LARS.
        Every layer: BEiT, arXiv 2106.08254, appendix, whose paper takes the mean of the patches
        and whose code "cls_mean". Both report the best layer; to choose it on development
        images is ours.
    """

    needs_labels = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        layers: Literal["last", "all"] = "last",
        pools: tuple[Pooling, ...] = ("mean",),
        weight_decays: tuple[NonNegative, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        label_fractions: tuple[Fraction, ...] = (1.0,),
        seeds: Count = 1,
        num_test_images: Count | None = None,
    ) -> None:
        distinct(_NAME, pools=pools, weight_decays=weight_decays, label_fractions=label_fractions)
        self.layers = layers
        self.pools = pools
        self.weight_decays = weight_decays
        self.label_fractions = label_fractions
        self.seeds = seeds
        self.num_test_images = num_test_images
        self._one: list[dict[Pool, Tensor | OnDisk]] | None = None  # until it was asked for

    @property
    def searches(self) -> bool:
        """Whether anything is chosen on development images."""
        return self.layers == "all" or len(self.weight_decays) > 1

    @property
    def parts(self) -> tuple[Pool, ...]:
        """What must be pooled to make up all ``pools``."""
        return tuple(dict.fromkeys(part for pool in self.pools for part in _PARTS[pool]))

    def check(self, subject: Subject) -> None:
        """Refuses unlabelled data, too few labels for a search, and a missing class token.

        Raises: DataError, RecipeError.
        """
        labels = labels_of(subject, _NAME)
        tell_gaps(subject, _NAME, labels, self.label_fractions, searches=self.searches)
        for fraction in self.label_fractions:
            subset = stratified_subset(labels.train, fraction, subject.seed)
            if self.searches:
                development_split(labels.train, subset, subject.seed)
        self._layers(subject)

    def work(self, subject: Subject) -> Work:
        """Counts the images of the encoder and of random ones; the seconds are those of the fits.

        They come from a few iterations on random features, as if every fit took half of those that
        it may take; with weak weight decay it takes them all.
        """
        labels = labels_of(subject, _NAME)
        seeds = range(subject.seed, subject.seed + self.seeds)
        num_test = len(stratified_limit(labels.test, self.num_test_images))
        num_encoded = 0
        for some in (seeds, *([seed] for seed in seeds)):
            num_encoded += len(self.training_images(labels.train, some)) + num_test
        # Width of features to how often they are fitted: pixels once, encoders with either weights.
        widths = {pixels_width(subject.view, _PIXELS_SIDE): 1}
        for layer, pool in product(self._layers(subject), self.pools):
            width = sum(layer[part].shape[1] for part in _PARTS[pool])
            widths[width] = widths.get(width, 0) + 2
        seconds = 0.0
        for fraction, (width, count) in product(self.label_fractions, widths.items()):
            num_labels = len(stratified_subset(labels.train, fraction, subject.seed))
            once = seconds_of_fit(num_labels, width, labels.num_classes, subject.device)
            seconds += count * once
        num_fits = 1 + self.searches * len(self.weight_decays)
        return Work(encoded=num_encoded, seconds=len(seeds) * num_fits * seconds)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` of the pre-trained encoder, of random ones and of raw pixels.

        One result by seed, fraction, pool and layer; with all layers one more of the chosen one.
        """
        seeds = range(subject.seed, subject.seed + self.seeds)
        num_layers = len(self._layers(subject))
        encoder = subject.pretrainer.encoder
        results = self._probe(subject, "pretrained", encoder, seeds, num_layers)
        for seed in seeds:
            encoder = subject.fresh(seed).encoder
            results += self._probe(subject, "random", encoder, [seed], num_layers)
        return results + self._probe(subject, _PIXELS, None, seeds, num_layers)

    def training_images(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Returns all images of which some seed and fraction reads the label, ascending."""
        subsets = [
            stratified_subset(labels, fraction, seed)
            for fraction, seed in product(self.label_fractions, seeds)
        ]
        images: Tensor = torch.unique(torch.cat(subsets))
        return images

    def _probe(
        self,
        subject: Subject,
        init: str,
        encoder: Encoder | None,
        seeds: Sequence[int],
        num_layers: int,
    ) -> list[Result]:
        table = _Table(
            options=self,
            subject=subject,
            encoded=_Encoded(self, subject, encoder, seeds),
            init=init,
            num_layers=num_layers,
            cells=Cells(subject.workdir / "cells.jsonl"),
        )
        return [result for seed in seeds for result in table.results(seed)]

    def _layers(self, subject: Subject) -> list[dict[Pool, Tensor | OnDisk]]:
        """Encodes one image: shows how many layers there are, and whether they can be pooled."""
        if self._one is None:
            encoder, one = subject.pretrainer.encoder, torch.arange(1)
            self._one = extract_layers(
                encoder, subject, subject.train, one, self.parts, layers=self.layers
            )
        return self._one


@dataclass(frozen=True)
class _Split:
    """One layer's features of both splits, pooled in one way; on the device.

    Args:
        train: (n, D), of the images ``train_index``.
        train_index: (n,) ascending.
        train_labels: (N,), of the whole split.
        test: (m, D).
        test_labels: (m,).
        num_classes: how many there are.
    """

    train: Tensor
    train_index: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int

    def fit(self, subset: Tensor, weight_decay: float, start: Probe | None = None) -> Probe:
        features, labels = self.training(subset)
        return fit(features, labels, self.num_classes, weight_decay=weight_decay, start=start)

    def training(self, subset: Tensor) -> tuple[Tensor, Tensor]:
        """Gives features and labels of some training images, by their numbers in the split."""
        rows = torch.searchsorted(self.train_index, subset)
        return self.train[rows.to(self.train.device)], self.train_labels[subset]


class _Encoded:
    """What one encoder makes of both splits, as soon as it is asked for."""

    def __init__(
        self, options: LinearProbe, subject: Subject, encoder: Encoder | None, seeds: Sequence[int]
    ) -> None:
        self.options = options
        self.subject = subject
        self.encoder = encoder
        self.labels = labels_of(subject, _NAME)
        # Images that no subset holds would be encoded for nothing.
        self.train = options.training_images(self.labels.train, seeds)
        self.test = stratified_limit(self.labels.test, options.num_test_images)
        self.weights = _PIXELS if encoder is None else digest(encoder)

    @cached_property
    def layers(self) -> list[tuple[dict[Pool, Tensor | OnDisk], dict[Pool, Tensor | OnDisk]]]:
        """Encodes training and test images; for each layer both splits' features."""
        subject, options, encoder = self.subject, self.options, self.encoder
        assert encoder is not None  # pixels have no layers
        train, test = (
            extract_layers(encoder, subject, source, index, options.parts, layers=options.layers)
            for source, index in ((subject.train, self.train), (subject.test, self.test))
        )
        return list(zip(train, test, strict=True))

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor]:
        """Renders training and test images."""
        subject = self.subject
        return (
            pixels(subject, subject.train, self.train, _PIXELS_SIDE),
            pixels(subject, subject.test, self.test, _PIXELS_SIDE),
        )

    def split(self, layer: int, pool: Pooling | None) -> _Split:
        """Gives both splits' features of layer 1, 2, ...; without a pool their pixels."""
        device = self.subject.device
        if pool is None:
            train, test = self.pixels
        else:
            train, test = (
                torch.cat([vectors[part].to(device) for part in _PARTS[pool]], dim=1)
                for vectors in self.layers[layer - 1]
            )
        labels = self.labels
        return _Split(
            train, self.train, labels.train, test, labels.test[self.test], labels.num_classes
        )


@dataclass(frozen=True)
class _Cell:
    init: str
    seed: int
    fraction: float
    pool: Pooling | None  # None of pixels
    layer: int


@dataclass(frozen=True)
class _Choice:
    """The best weight decay, and how its probe does on development images, if any were used."""

    weight_decay: float
    development: Score | None = None
    probe: Probe | None = None


@dataclass(frozen=True)
class _Found:
    """What came of a cell."""

    num_labels: int
    accuracy: float
    image_scores: str
    weight_decay: float
    development_accuracy: float | None
    development_loss: float | None


def _rank(accuracy: float | None, loss: float | None) -> tuple[float, float]:
    """Orders by development images. Few of them often tie: then the smaller loss decides."""
    assert accuracy is not None and loss is not None  # noqa: PT018 -- for mypy
    return accuracy, -loss


@dataclass(frozen=True)
class _Table:
    """The cells of one encoder; each is measured once, also if the run is killed between."""

    options: LinearProbe
    subject: Subject
    encoded: _Encoded
    init: str
    num_layers: int
    cells: Cells

    def results(self, seed: int) -> list[Result]:
        """Measures every layer with the labels of one seed."""
        options = self.options
        results = []
        for fraction, pool in product(options.label_fractions, options.pools):
            if self.init == _PIXELS:
                results.append(self._pixels_result(_Cell(_PIXELS, seed, fraction, None, 1), pool))
                continue
            cells = [_Cell(self.init, seed, fraction, pool, n + 1) for n in range(self.num_layers)]
            found = {cell: self._measure(cell) for cell in cells}
            if options.layers == "last":
                last = {"layer": "last", "pool": pool}
                results.append(self._result(cells[0], found[cells[0]], last))
                continue
            count = {"num_layers": self.num_layers, "pool": pool}
            results += [self._result(c, found[c], {"layer": c.layer, **count}) for c in cells]
            best = max(
                cells,
                key=lambda c: _rank(found[c].development_accuracy, found[c].development_loss),
            )
            result = self._result(best, found[best], {"layer": _CHOSEN, **count})
            results.append(replace(result, chosen={"layer": best.layer, **result.chosen}))
        return results

    def _pixels_result(self, cell: _Cell, pool: Pooling) -> Result:
        """Puts pixels beside what was probed: the last layer, or the one that is chosen."""
        layer: dict[str, Plain] = {"layer": "last"}
        if self.options.layers == "all":
            layer = {"layer": _CHOSEN, "num_layers": self.num_layers}
        # Measured at the first pool, known at the others.
        return self._result(cell, self._measure(cell), {**layer, "pool": pool})

    def _measure(self, cell: _Cell) -> _Found:
        """Fits one probe and classifies the test images, unless that was done before."""
        subject, options = self.subject, self.options
        key = cell_key(
            weights=self.encoded.weights,
            data=[subject.train.fingerprint, subject.test.fingerprint, asdict(subject.view)],
            cell=[*asdict(cell).values(), options.layers, options.num_test_images],
            weight_decays=options.weight_decays,
            **subject.rounding,
        )
        known = self.cells.get(key)
        if known is not None:
            return _Found(**{field.name: known[field.name] for field in fields(_Found)})
        found = self._fit(self.encoded.split(cell.layer, cell.pool), cell)
        what = "" if cell.pool is None else f"{cell.pool}, "
        if cell.pool is not None and options.layers == "all":
            what = f"layer {cell.layer} of {self.num_layers}, {what}"
        subject.report(
            f"{_NAME}, {cell.init}, {what}{100 * cell.fraction:g} % of the labels, "
            f"seed {cell.seed}: {100 * found.accuracy:.1f} %"
        )
        self.cells.add(key, {**asdict(cell), **asdict(found)})
        return found

    def _fit(self, split: _Split, cell: _Cell) -> _Found:
        subset = stratified_subset(self.encoded.labels.train, cell.fraction, cell.seed)
        choice = self._choose(split, subset, cell.seed)
        probe = split.fit(subset, choice.weight_decay, start=choice.probe)
        score, development = probe.score(split.test, split.test_labels), choice.development
        return _Found(
            num_labels=len(subset),
            accuracy=score.accuracy,
            image_scores=score.image_scores,
            weight_decay=choice.weight_decay,
            development_accuracy=development.accuracy if development else None,
            development_loss=development.loss if development else None,
        )

    def _choose(self, split: _Split, subset: Tensor, seed: int) -> _Choice:
        """Finds the weight decay that is best on the development split."""
        options = self.options
        if not options.searches:
            return _Choice(options.weight_decays[0])
        fitted, held = development_split(self.encoded.labels.train, subset, seed)
        features, labels = split.training(held)
        scored = []
        probe = None
        # From strong to weak: each optimum is a good start for the next.
        for weight_decay in sorted(options.weight_decays, reverse=True):
            probe = split.fit(fitted, weight_decay, start=probe)
            scored.append((probe.score(features, labels), weight_decay, probe))
        score, weight_decay, probe = max(scored, key=lambda s: _rank(s[0].accuracy, s[0].loss))
        return _Choice(weight_decay, score, probe)

    def _result(self, cell: _Cell, found: _Found, layer: Mapping[str, Plain]) -> Result:
        num_test_images = len(self.encoded.test)
        chosen: dict[str, Plain] = {"weight_decay": found.weight_decay}
        if self.options.searches:
            chosen["development_accuracy"] = found.development_accuracy
        return Result(
            evaluator=_NAME,
            metric="accuracy",
            value=found.accuracy,
            num_images=num_test_images,
            seed=cell.seed,
            init=cell.init,
            protocol={
                "label_fraction": cell.fraction,
                "num_labels": found.num_labels,
                "num_test_images": num_test_images,
                **layer,
                "weight_decays": ", ".join(f"{w:g}" for w in self.options.weight_decays),
            },
            chosen=chosen,
            image_scores=found.image_scores,
        )
