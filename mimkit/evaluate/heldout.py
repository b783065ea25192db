"""The pre-training task itself, on held-out images: does it generalise, or learn by heart?"""

from collections.abc import Iterator
from typing import Final

import torch

from mimkit.evaluate.base import Evaluator, Result, Subject, Work
from mimkit.evaluate.features import evaluation_mode
from mimkit.evaluate.images import WholeImages, evenly_spaced
from mimkit.parts.bounds import AnyCount, Count
from mimkit.parts.records import Batch, Geometry

_MASK_SEED: Final = 0
_PIECE: Final = 128
"""So many images at once: a fixed number, so that figures of a whole piece, such as its most
frequent class, are the same on every device."""


class HeldOut(Evaluator):
    """Losses and metrics of every term on whole test images, in evaluation mode.

    Whole, because what augmentation adds may give a task away: black padding tells border
    patches their place. Images and masks are the same at every call and for every seed. They are
    judged in batches as in pre-training, or, where these are larger, in pieces of 128 images.

    Args:
        geometry: not needed.
        num_images: so many images, evenly spaced over the test split.
        every_steps: also measure during training at this interval; None only at its end.
    """

    needs_targets = True

    def __init__(
        self, geometry: Geometry, *, num_images: Count = 2000, every_steps: AnyCount | None = None
    ) -> None:
        self.num_images = num_images
        self.every_steps = every_steps

    def work(self, subject: Subject) -> Work:
        """Counts the held-out images."""
        return Work(encoded=len(evenly_spaced(subject.test, self.num_images)))

    @torch.no_grad()
    def run(self, subject: Subject) -> list[Result]:
        """Gives ``loss/<term>`` and ``metric/<term>/<name>``, means over all valid positions."""
        total = torch.zeros(())
        sums: dict[str, torch.Tensor] = {}
        num_images = 0
        with evaluation_mode(subject.pretrainer):
            for batch in self._batches(subject):
                with subject.autocast():
                    output = subject.pretrainer(batch)
                values = {f"loss/{name}": value for name, value in output.terms.items()}
                values |= {f"metric/{name}": value for name, value in output.metrics.items()}
                weight = batch.mask.valid.sum().cpu()
                total = total + weight
                num_images += len(batch.index)
                for name, value in values.items():
                    sums[name] = sums.get(name, torch.zeros(())) + weight * value.float().cpu()
        return [
            Result("heldout", name, float(value / total), num_images, subject.seed)
            for name, value in sums.items()
        ]

    def _batches(self, subject: Subject) -> Iterator[Batch]:
        index = evenly_spaced(subject.test, self.num_images)
        images = WholeImages(subject.test, index, subject.views, subject.batch_size)
        generator = torch.Generator().manual_seed(_MASK_SEED)
        for numbers, views in images.stream(
            len(images), workers=subject.workers, device=subject.device
        ):
            mask = subject.masker.sample(len(numbers), generator)
            whole = Batch(views, mask, None, numbers).to(subject.device)
            for start in range(0, len(numbers), _PIECE):
                yield whole.rows(start, start + _PIECE)
