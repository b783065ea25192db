"""A linear classifier on frozen features of one layer or of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.evaluate.base import Evaluator, Plain, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table
from mimkit.evaluate.choices import distinct
from mimkit.evaluate.features import Pool, extract_layers, pixels, pixels_width
from mimkit.evaluate.fractions import Subsets, labels_of
from mimkit.evaluate.logistic import Probe, fit, seconds_of_fit
from mimkit.evaluate.on_disk import OnDisk
from mimkit.evaluate.score import Score
from mimkit.evaluate.search import best
from mimkit.evaluate.starts import Start, by_encoder, starts
from mimkit.parts.bounds import Count, Fraction, NonNegative
from mimkit.parts.records import Geometry

_NAME: Final = "linear_probe"
_CHOSEN: Final = "chosen on development images"
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
        self.subsets(subject).check(subject, _NAME)
        self._layers(subject)

    def work(self, subject: Subject) -> Work:
        """Counts the images of the encoder and of random ones; the seconds are those of the fits.

        They come from a few iterations on random features, as if every fit took half of those that
        it may take; with weak weight decay it takes them all.
        """
        subsets = self.subsets(subject)
        num_encoded = 0
        for some in by_encoder(subsets.seeds):
            num_encoded += len(subsets.union(some)) + len(subsets.test)
        # Width of features to how often they are fitted: pixels once, encoders with either weights.
        widths = {pixels_width(subject.view, _PIXELS_SIDE): 1}
        for layer, pool in product(self._layers(subject), self.pools):
            width = sum(layer[part].shape[1] for part in _PARTS[pool])
            widths[width] = widths.get(width, 0) + 2
        seconds = 0.0
        rows = subsets.rows("pretrained", [subject.seed])
        for row, (width, count) in product(rows, widths.items()):
            num_labels, num_classes = len(subsets.train(row)), subsets.labels.num_classes
            seconds += count * seconds_of_fit(num_labels, width, num_classes, subject.device)
        num_fits = 1 + self.searches * len(self.weight_decays)
        return Work(encoded=num_encoded, seconds=self.seeds * num_fits * seconds)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` of the pre-trained encoder, of random ones and of raw pixels.

        One result by seed, fraction, pool and layer; with all layers one more of the chosen one.
        """
        subsets = self.subsets(subject)
        table = Table(subject, _NAME, subsets.test)
        num_layers = len(self._layers(subject))
        return [
            result
            for start in starts(subject, subsets.seeds)
            for result in self._results(_Fits(self, table, subsets, start), num_layers)
        ]

    def subsets(self, subject: Subject) -> Subsets:
        """Returns which images are trained on and judged."""
        return Subsets(
            labels=labels_of(subject, _NAME),
            fractions=self.label_fractions,
            seeds=range(subject.seed, subject.seed + self.seeds),
            num_test_images=self.num_test_images,
            searches=self.searches,
        )

    def _results(self, fits: _Fits, num_layers: int) -> list[Result]:
        """Measures one start with every pool and layer."""
        start, results = fits.start, []
        for row, pool in product(fits.subsets.rows(start.init, start.seeds), self.pools):
            where: dict[str, Plain] = {"layer": "last", "pool": pool}
            if self.layers == "all":
                where = {"layer": _CHOSEN, "num_layers": num_layers, "pool": pool}
            cell = replace(row, setting={"pool": pool})
            chosen: dict[str, Plain] = {}
            if start.encoder is None:
                cell = row  # measured at the first pool, known at the others
            elif self.layers == "all":
                cells = [
                    replace(row, setting={"pool": pool, "layer": layer})
                    for layer in range(1, num_layers + 1)
                ]
                for one in cells:
                    results += fits.results(one, {**where, "layer": one.setting["layer"]}, {})
                cell, _ = best(cells, fits.development)
                chosen = {"layer": cell.setting["layer"]}
            results += fits.results(cell, where, chosen)
        return results

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


class _Fits:
    """Fits and judges probes of the features of one start, encoded as soon as they are needed."""

    def __init__(self, options: LinearProbe, table: Table, subsets: Subsets, start: Start) -> None:
        self.options = options
        self.table = table
        self.subsets = subsets
        self.start = start
        self.subject = table.subject
        self.weights = start.weights
        # Images that no subset holds would be encoded for nothing.
        self.train = subsets.union(start.seeds)

    @cached_property
    def layers(self) -> list[tuple[dict[Pool, Tensor | OnDisk], dict[Pool, Tensor | OnDisk]]]:
        """Encodes training and test images; for each layer both splits' features."""
        subject, options, encoder = self.subject, self.options, self.start.encoder
        assert encoder is not None  # pixels have no layers
        train, test = (
            extract_layers(encoder, subject, source, index, options.parts, layers=options.layers)
            for source, index in ((subject.train, self.train), (subject.test, self.subsets.test))
        )
        return list(zip(train, test, strict=True))

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor]:
        """Renders training and test images."""
        subject = self.subject
        return (
            pixels(subject, subject.train, self.train, _PIXELS_SIDE),
            pixels(subject, subject.test, self.subsets.test, _PIXELS_SIDE),
        )

    def results(
        self, cell: Cell, where: Mapping[str, Plain], chosen: Mapping[str, Plain]
    ) -> list[Result]:
        """Measures a cell.

        Args:
            cell: which one.
            where: what its results say of pool and layer.
            chosen: what was found on development images beside the weight decay.
        """
        score, options = self.score(cell), self.options
        weight_decays = ", ".join(f"{w:g}" for w in options.weight_decays)
        names = ("weight_decay", "development_accuracy")[: 1 + options.searches]
        return self.table.results(
            cell,
            score,
            {**self.subsets.protocol(cell), **where, "weight_decays": weight_decays},
            {**chosen, **{name: score.chosen[name] for name in names}},
        )

    def score(self, cell: Cell) -> Score:
        """Fits one probe and classifies the test images, unless that was done before."""
        options, pool, layer = self.options, cell.setting.get("pool"), cell.setting.get("layer", 1)
        place = [cell.init, cell.seed, cell.fraction, pool, layer]
        depends_on = {
            "weights": self.weights,
            "cell": [*place, options.layers, options.num_test_images],
            "weight_decays": options.weight_decays,
            **self.subject.rounding,
        }
        return self.table.score(cell, depends_on, lambda: self._fit(cell, self._split(layer, pool)))

    def development(self, cell: Cell) -> Score:
        """Tells what the probe of a cell has scored on development images."""
        chosen = self.score(cell).chosen
        return Score({"accuracy": chosen["development_accuracy"]}, chosen["development_loss"])

    def _split(self, layer: int, pool: Pooling | None) -> _Split:
        """Gives both splits' features of layer 1, 2, ...; without a pool their pixels."""
        device = self.subject.device
        if pool is None:
            train, test = self.pixels
        else:
            train, test = (
                torch.cat([vectors[part].to(device) for part in _PARTS[pool]], dim=1)
                for vectors in self.layers[layer - 1]
            )
        labels, judged = self.subsets.labels, self.subsets.test
        return _Split(
            train, self.train, labels.train, test, labels.test[judged], labels.num_classes
        )

    def _fit(self, cell: Cell, split: _Split) -> Score:
        """Finds the weight decay that is best on the development images, and fits with it."""
        weight_decay, development = self.options.weight_decays[0], None
        probes: dict[float, Probe] = {}
        if self.options.searches:
            fitted, held = self.subsets.development(cell)
            features, labels = split.training(held)

            def score(weight_decay: float) -> Score:
                start = next(reversed(probes.values()), None)
                probes[weight_decay] = split.fit(fitted, weight_decay, start=start)
                return probes[weight_decay].score(features, labels)

            # From strong to weak: each optimum is a good start for the next.
            weight_decay, development = best(
                sorted(self.options.weight_decays, reverse=True), score
            )
        subset = self.subsets.train(cell)
        probe = split.fit(subset, weight_decay, start=probes.get(weight_decay))
        found = probe.score(split.test, split.test_labels)
        chosen = {
            "weight_decay": weight_decay,
            "development_accuracy": development and development.value,
            "development_loss": development and development.loss,
        }
        return Score(found.metrics, image_scores=found.image_scores, chosen=chosen)
