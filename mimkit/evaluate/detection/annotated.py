"""Which images are annotated with objects."""

import torch

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
                "has them beside the images, name it with data.objects, name an annotated set "
                "for the evaluations with data.labelled, or remove this evaluator."
            )
        labels = torch.full((len(source),), -1)
        usable = torch.from_numpy(source.objects.usable())
        labels[usable] = 0
        if not any(len(source.objects(index)) for index in usable.tolist()):
            raise DataError(
                f"evaluator '{evaluator}' needs objects, but of the {len(usable):,} annotated "
                f"images of the {source.split} split of '{source.name}' none shows any "
                f"({source.objects.kind})."
            )
        known.append(labels)
    return Labels(known[0], known[1], 1)
