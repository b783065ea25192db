"""Which images give their labels: a function of labels, fraction and seed, the same for all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.data.counter import uniform
from mimkit.data.source import Source
from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.base import Plain, Subject
from mimkit.evaluate.cells import Cell

# Streams of the counter generator; those of augmentation are small numbers.
_LABELS, _DEVELOPMENT = 1001, 1002
_NONE: Final = -1
"""The label of an image that has none."""
_SHOWN: Final = 10
"""So many classes are named where many have the same gap."""


def stratified_subset(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Chooses a fraction of every class, at least one image of each.

    Within a class the images are ranked by a random key and the first ones are taken, so the
    subsets of one seed are nested: 5 % lies inside 10 %. Equal classes give equally many.

    Args:
        labels: (N,) int64; images with a negative label have none and are never chosen.
        fraction: in (0, 1].
        seed: which of the many subsets.

    Shape: (n,) int64, ascending positions in ``labels``.
    Raises: RecipeError if ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise RecipeError(f"a label fraction must be above 0 and at most 1, but is {fraction}.")
    known = np.flatnonzero(labels.numpy() >= 0)
    return _first_of_each_class(labels.numpy(), known, fraction, seed, _LABELS)


def development_split(labels: Tensor, subset: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sets 10 % of the labelled images aside, at least one of each class that has two.

    Hyper-parameters are chosen on them, so that nothing is ever chosen on test images.

    Args:
        labels: (N,) int64, of the whole split.
        subset: (n,) int64, the labelled images.
        seed: of the choice.

    Returns: the images to train on and those to choose on, both ascending.
    Raises: RecipeError if no class has two labelled images.
    """
    classes = labels.numpy()
    members = subset.numpy()
    counts = np.bincount(classes[members])
    shared = members[counts[classes[members]] >= 2]
    if not len(shared):
        raise RecipeError(
            f"no class has two labelled images ({len(subset)} in all), so none can be set aside to "
            "choose hyper-parameters on. Give a larger label fraction, or one value to search."
        )
    development = _first_of_each_class(classes, shared, 0.1, seed, _DEVELOPMENT)
    return subset[~torch.isin(subset, development)], development


def held_back(train: Source) -> tuple[Source, Source]:
    """Splits the labels of a training split in two: nine in ten to learn from, one to judge by.

    Both are the same images; each label stands in one of them alone. So nothing is copied, and a
    label that is held back can neither be learned from nor judged by twice.

    Raises: RecipeError if no class has two labelled images; DataError if no image has a label.
    """
    if train.labels is None or not bool((train.labels >= 0).any()):
        raise DataError(
            f"data.judge: 'development' holds labels back, but the training images of "
            f"'{train.name}' ({train.origin}) have none. Name labels with data.labels or "
            "data.labelled."
        )
    labels = train.labels
    _, development = development_split(labels, torch.nonzero(labels >= 0)[:, 0], 0)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[development] = True
    rest, judged = labels.where(~held, _NONE), labels.where(held, _NONE)
    return (
        replace(train, labels=rest, fingerprint=f"{train.fingerprint}-rest"),
        replace(train, labels=judged, split="test", fingerprint=f"{train.fingerprint}-held"),
    )


def stratified_limit(labels: Tensor, num_images: int | None) -> Tensor:
    """Chooses about ``num_images`` labelled images, the same for every seed; all for None.

    Not simply the first ones: data sets often come sorted by class.

    Shape: (n,) int64, ascending positions in ``labels``.
    """
    known = int((labels >= 0).sum())
    limit = known if num_images is None else min(num_images, known)
    return stratified_subset(labels, limit / known, 0)


@dataclass(frozen=True)
class Labels:
    """The labels of both splits.

    Args:
        train: (N,) int64, negative where there is none.
        test: (N,) int64, likewise.
        num_classes: how many classes they number.
    """

    train: Tensor
    test: Tensor
    num_classes: int


def labels_of(subject: Subject, evaluator: str) -> Labels:
    """Returns the labels of both splits.

    Raises: DataError as `labels_in`.
    """
    return labels_in(subject.train, subject.test, evaluator)


def labels_in(train: Source, test: Source, evaluator: str) -> Labels:
    """Returns the labels of two splits.

    Raises: DataError if a split has none, if the splits' classes differ, or if fewer than two
        classes have labelled training images.
    """
    for source in (train, test):
        if source.labels is None or not bool((source.labels >= 0).any()):
            raise DataError(
                f"evaluator '{evaluator}' needs labels, but the {source.split} split of "
                f"'{source.name}' ({source.origin}) has none. Name a labelled set for the "
                "evaluations with data.labelled, a table of files and labels with data.labels, a "
                "column with data.label_column, put the images into one folder a class, or remove "
                "this evaluator from the recipe."
            )
    assert train.labels is not None and test.labels is not None  # noqa: PT018 -- for mypy
    if train.classes != test.classes or len(train.classes) < 2:
        raise DataError(
            f"evaluator '{evaluator}' needs the same two or more classes in both splits of "
            f"'{train.name}', but they are {', '.join(train.classes)} (train) and "
            f"{', '.join(test.classes)} (test)."
        )
    counts = _counts(train.labels, len(train.classes))
    if (counts > 0).sum() < 2:
        (only,) = _names(train.classes, counts > 0)
        raise DataError(
            f"evaluator '{evaluator}' needs labelled training images of two or more classes of "
            f"'{train.name}', but only '{only}' has any. Give more labelled images."
        )
    return Labels(train.labels, test.labels, len(train.classes))


@dataclass(frozen=True)
class Subsets:
    """Which images the rows of a table train on, search on and judge.

    Args:
        labels: of both splits.
        fractions: of the labels to train on.
        seeds: each with its own subset of every fraction.
        num_test_images: to judge, all classes alike; None for all.
        searches: whether anything is chosen on development images.
    """

    labels: Labels
    fractions: Sequence[float]
    seeds: Sequence[int]
    num_test_images: int | None
    searches: bool

    @cached_property
    def test(self) -> Tensor:
        """The images of the test split to judge, (m,) int64 ascending."""
        return stratified_limit(self.labels.test, self.num_test_images)

    def rows(self, init: str, seeds: Sequence[int]) -> list[Cell]:
        """Walks over seeds and fractions."""
        return [Cell(init, seed, fraction) for seed, fraction in product(seeds, self.fractions)]

    def train(self, row: Cell) -> Tensor:
        """The images whose labels a row has, (n,) int64 ascending."""
        fraction = 1.0 if row.fraction is None else row.fraction
        return stratified_subset(self.labels.train, fraction, row.seed)

    def development(self, row: Cell) -> tuple[Tensor, Tensor]:
        """Those of them to train on and to judge while something is chosen."""
        return development_split(self.labels.train, self.train(row), row.seed)

    def union(self, seeds: Sequence[int]) -> Tensor:
        """All images of which some row of these seeds has the label, ascending."""
        rows = [self.train(row) for row in self.rows("pretrained", seeds)]
        images: Tensor = torch.unique(torch.cat(rows))
        return images

    def sizes(self, seeds: Sequence[int], candidates: int) -> list[tuple[int, int]]:
        """Counts for each training, those of a search included, the images it has and judges.

        Args:
            seeds: of the rows.
            candidates: how many values each row searches among; one is taken as it is.
        """
        found = []
        for row in self.rows("pretrained", seeds):
            found.append((len(self.train(row)), len(self.test)))
            if candidates > 1:
                fitted, held = self.development(row)
                found += candidates * [(len(fitted), len(held))]
        return found

    def check(self, subject: Subject, evaluator: str) -> None:
        """Reports classes with gaps, and refuses too few labels for a search.

        Raises: RecipeError.
        """
        tell_gaps(subject, evaluator, self.labels, self.fractions, searches=self.searches)
        for row in self.rows("pretrained", [subject.seed]):
            if self.searches:
                self.development(row)

    def protocol(self, row: Cell) -> dict[str, Plain]:
        """What a result says of its images."""
        return {
            "label_fraction": row.fraction,
            "num_labels": len(self.train(row)),
            "num_test_images": len(self.test),
        }


def tell_gaps(
    subject: Subject,
    evaluator: str,
    labels: Labels,
    fractions: Sequence[float] = (1.0,),
    *,
    searches: bool = False,
) -> None:
    """Reports classes that give fewer labels than a fraction means them to, by their names.

    A class without a labelled training image is never answered, one without a test image never
    asked; one whose share is less than one image gives one; of a single image none can be set
    aside to choose hyper-parameters on.

    Args:
        subject: whose report is told.
        evaluator: that asks.
        labels: of its splits.
        fractions: of the labels that it trains on.
        searches: whether it sets images aside to choose hyper-parameters on.
    """
    classes = subject.train.classes
    train, test = (_counts(split, labels.num_classes) for split in (labels.train, labels.test))
    absent = train == 0
    gaps = [
        (absent & (test > 0), "no labelled training image, so their test images count as wrong"),
        (absent & (test == 0), "no labelled image at all"),
        (~absent & (test == 0), "no test image, so they are not judged"),
    ]
    for fraction in fractions:
        share = f"at {100 * fraction:g} % of the labels"
        subset = stratified_subset(labels.train, fraction, subject.seed)
        few = ~absent & (fraction * train < 0.5)
        single = (_counts(labels.train[subset], labels.num_classes) == 1) & ~few & searches
        gaps += [
            (few, f"less than half an image {share}, and give one"),
            (single, f"one image {share}, and none to choose hyper-parameters on"),
        ]
    for chosen, what in gaps:
        if chosen.any():
            names = _names(classes, chosen)
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            subject.report(
                f"{evaluator}: {len(names)} of {len(classes)} classes ({shown}) have {what}"
            )


def _counts(labels: Tensor, num_classes: int) -> NDArray[np.int64]:
    known = labels.numpy()
    return np.bincount(known[known >= 0], minlength=num_classes)


def _names(classes: Sequence[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [name for name, one in zip(classes, chosen, strict=True) if one]


def _first_of_each_class(
    labels: NDArray[np.int64], members: NDArray[np.int64], fraction: float, seed: int, stream: int
) -> Tensor:
    """Takes the first ``fraction`` of each class among ``members``, in the order of their keys."""
    keys = uniform(seed, stream, members, 1)[:, 0]
    ranked = members[np.lexsort((keys, labels[members]))]  # class by class
    _, start, counts = np.unique(labels[ranked], return_index=True, return_counts=True)
    # Half rounds up: a rule that is monotone in the fraction keeps the subsets nested.
    wanted = np.maximum(1, np.floor(fraction * counts + 0.5).astype(np.int64))
    rank = np.arange(len(ranked)) - np.repeat(start, counts)
    chosen = ranked[rank < np.repeat(wanted, counts)]
    return torch.from_numpy(np.sort(chosen))
