"""Which images give their labels: a function of labels, fraction and seed, the same for all."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.data.counter import uniform
from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.base import Subject

# Streams of the counter generator; those of augmentation are small numbers.
_LABELS, _DEVELOPMENT = 1001, 1002


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

    Raises: DataError if a split has none, if there is only one class, or if the splits' classes
        differ.
    """
    train, test = subject.train, subject.test
    for source in (train, test):
        if source.labels is None or not bool((source.labels >= 0).any()):
            raise DataError(
                f"evaluator '{evaluator}' needs labels, but the {source.split} split of "
                f"'{source.name}' ({source.origin}) has none. Put the images into one folder a "
                "class, or remove this evaluator from the recipe."
            )
    assert train.labels is not None and test.labels is not None  # noqa: PT018 -- for mypy
    if train.classes != test.classes or len(train.classes) < 2:
        raise DataError(
            f"evaluator '{evaluator}' needs the same two or more classes in both splits of "
            f"'{train.name}', but they are {', '.join(train.classes)} (train) and "
            f"{', '.join(test.classes)} (test)."
        )
    return Labels(train.labels, test.labels, len(train.classes))


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
