"""RandAugment (arXiv 1909.13719): every image under operations drawn for it alone."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import RandAugment as RandAugmentation
from timm.data.auto_augment import posterize, rand_augment_transform
from torch import Tensor

from mimkit.data.counter import uniform
from mimkit.data.pixels.augment import EPOCH_STRIDE
from mimkit.errors import RecipeError
from mimkit.parts.records import View

_STREAM: Final = 1003
# timm skips most of what it does not know, so that a slip of the pen would change the numbers.
_CONFIG: Final = re.compile(
    r"rand(-(m\d+|n\d+|mmax\d+|mstd\d+(\.\d+)?|p\d+(\.\d+)?|inc[01]|tweights|t3aw?))*"
)


@dataclass(frozen=True)
class RandAugment:
    """Changes the colours and the geometry of images.

    Args:
        config: as timm writes it, for instance ``"rand-m9-mstd0.5-inc1"``: magnitude 9 with
            standard deviation 0.5, operations that get stronger with it, two of them an image.

    Raises: RecipeError if timm would not understand all of ``config``.
    Source: timm's ``rand_augment_transform``. What moves into the image has the mean colour of the
        view; its kernel is the view's, but bicubic for Lanczos, which Pillow cannot rotate with.
    """

    config: str

    def __post_init__(self) -> None:
        if not _CONFIG.fullmatch(self.config):
            raise RecipeError(
                "evaluator 'finetune', rand_augment: must be written as in timm, with parts m, n, "
                "p, mstd, mmax, inc or t, such as 'rand-m9-mstd0.5-inc1', but is "
                f"'{self.config}'."
            )

    def __call__(
        self,
        pixels: Tensor,
        view: View,
        seed: int,
        epoch: NDArray[np.int64],
        index: NDArray[np.int64],
    ) -> Tensor:
        """Augments each image, as a function of (seed, epoch, index) alone.

        Shape: pixels (n, 3, H, W) uint8 on any device, epoch (n,), index (n,); the result is like
            ``pixels``, on the CPU.
        """
        transform = self._transform(view)
        words = uniform(seed, _STREAM, epoch * EPOCH_STRIDE + index, 1)[:, 0]
        augmented = []
        with global_random_state_kept():
            for image, word in zip(pixels.cpu(), words, strict=True):
                seed_global_random(int(word * 2**53))
                after = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
                augmented.append(torch.from_numpy(np.array(after)).permute(2, 0, 1))
        return torch.stack(augmented)

    def _transform(self, view: View) -> RandAugmentation:
        kernels = Image.Resampling
        kernel = kernels.BILINEAR if view.interpolation == "bilinear" else kernels.BICUBIC
        fill = tuple(min(255, round(255 * mean)) for mean in view.mean)
        transform: RandAugmentation = rand_augment_transform(
            self.config, {"img_mean": fill, "interpolation": kernel}
        )
        for operation in transform.ops:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
        return transform


def _posterize(image: Image.Image, num_bits: int, **options: object) -> Image.Image:
    """Does as timm, also where no bit is left: Pillow 13 refuses what used to give black."""
    if num_bits <= 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = posterize(  # type: ignore[no-untyped-call]
        image, num_bits, **options
    )
    return posterized


@contextmanager
def global_random_state_kept() -> Iterator[None]:
    """Lets timm draw from python's and numpy's global generators, then puts them back."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def seed_global_random(seed: int) -> None:
    """Seeds python's and numpy's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
