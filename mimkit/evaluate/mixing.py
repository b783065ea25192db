"""What happens to a whole training batch: erasing, mixup and CutMix."""

from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from mimkit.evaluate.randaugment import global_random_state_kept, seed_global_random


class Mixing:
    """Erases rectangles, then blends each image with another one of the batch, or a part of it.

    Args:
        mixup: both parameters of the beta distribution that the weights of blended images have
            (arXiv 1710.09412); 0 for no mixup.
        cutmix: likewise of the share that stays when a rectangle is exchanged
            (arXiv 1905.04899); 0 for no CutMix. With both, each batch draws one at even odds.
        random_erasing: probability that a rectangle of an image becomes noise (arXiv 1708.04896).
        num_classes: of the labels.

    Source: timm's ``Mixup``, one draw for a batch, and ``RandomErasing``, normal noise per pixel.
    """

    def __init__(
        self, *, mixup: float, cutmix: float, random_erasing: float, num_classes: int
    ) -> None:
        self.random_erasing = random_erasing
        self.mix = None
        if mixup or cutmix:
            # The loss smooths the labels, mixed or not.
            self.mix = Mixup(  # type: ignore[no-untyped-call]
                mixup, cutmix, label_smoothing=0.0, num_classes=num_classes
            )

    def __call__(self, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Changes ``image`` in place, as a function of it, ``seed`` and torch's global generator.

        Shape: image (B, C, H, W), with B even for mixup and CutMix; labels (B,) int64, and also
            the labels that are returned, unless images were mixed: then (B, num_classes) float32,
            each row with the sum 1.
        """
        with global_random_state_kept():
            seed_global_random(seed)
            if self.random_erasing:
                erase = RandomErasing(  # type: ignore[no-untyped-call]
                    self.random_erasing, mode="pixel", device=image.device
                )
                image = erase(image)
            if self.mix is not None:
                image, labels = self.mix(image, labels)
        return image, labels
