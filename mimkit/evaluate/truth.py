"""Which images have masks that an evaluator can use."""

import torch
from torch import Tensor

from mimkit.data.source import Source
from mimkit.data.truth.records import Masks
from mimkit.errors import DataError


def masks_in(train: Source, test: Source, evaluator: str) -> tuple[Masks, Masks]:
    """Returns the masks of two splits.

    Raises: DataError if a split has none, or they know fewer than two classes.
    """
    found = []
    for source in (train, test):
        masks = source.masks
        if masks is None or not len(masks.usable()):
            first = "" if masks is None else _first(masks)
            raise DataError(
                f"evaluator '{evaluator}' needs masks, but the {source.split} split of "
                f"'{source.name}' ({source.origin}) has none{first}. Put them into a folder masks/ "
                "beside images/, under the names of the images, as PNG whose values are ids of "
                "classes; or name their folder or column with data.masks; or remove this evaluator "
                "from the recipe."
            )
        found.append(masks)
    ours, theirs = found
    if len(ours.classes) < 2:
        raise DataError(
            f"evaluator '{evaluator}' needs masks of two or more classes, but those of "
            f"'{train.name}' ({train.origin}) know only {', '.join(ours.classes) or 'none'}."
        )
    return ours, theirs


def annotated(masks: Masks, num_images: int) -> Tensor:
    """Gives 0 to images whose masks can be used, and -1 to the others.

    Shape: (num_images,) int64.
    """
    labels = torch.full((num_images,), -1)
    labels[torch.from_numpy(masks.usable())] = 0
    return labels


def _first(masks: Masks) -> str:
    if not masks.skipped:
        return ""
    first = masks.skipped[0]
    return f" that can be used ({first.path} {first.reason})"
