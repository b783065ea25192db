"""Which images are annotated with objects."""

import torch
from torch import Tensor

from mimkit.data.source import Source
from mimkit.data.truth.records import Objects
from mimkit.errors import DataError
from mimkit.evaluate.base import Subject
from mimkit.evaluate.fractions import Labels


def objects_of(source: Source) -> Objects:
    """The objects of a split that is known to have some."""
    assert source.objects is not None
    return source.objects


def annotated(subject: Subject, evaluator: str) -> Labels:
    """Labels annotated images alike, so that fractions and development images are drawn of them.

    Raises: DataError if a split has no annotations, or these no object.
    """
    known = []
    for source in (subject.train, subject.test):
        if source.objects is None:
            raise DataError(
                f"evaluator '{evaluator}' needs boxes, but the {source.split} split of "
                f"'{source.name}' ({source.origin}) has none. Put a JSON of objects as COCO "
                "has them beside the images, or a column of them into the table, name it with "
                "data.objects, name an annotated set for the evaluations with data.labelled, or "
                "remove this evaluator."
            )
        labels = torch.full((len(source),), -1)
        usable = torch.from_numpy(source.objects.usable())
        labels[usable] = 0
        require_objects(source, usable, f"annotated images of the {source.split} split", evaluator)
        known.append(labels)
    return Labels(known[0], known[1], 1)


def require_objects(source: Source, index: Tensor, what: str, evaluator: str) -> None:
    """Refuses images of which none shows an object that can be found.

    Args:
        source: the split.
        index: (n,) int64, the images.
        what: they are.
        evaluator: that asks.

    Raises: DataError.
    """
    objects = objects_of(source)
    if not any(bool((~objects(image).crowd).any()) for image in index.tolist()):
        raise DataError(
            f"evaluator '{evaluator}' needs objects, but of the {len(index):,} {what} of "
            f"'{source.name}' none shows any ({objects.kind}). Give more images, or remove this "
            "evaluator."
        )
