"""The alignment constraint. Source: CAE, arXiv 2202.03026, section 3.2."""

from collections.abc import Mapping
from typing import Final

import torch
from einops import repeat
from torch import Tensor

from mimkit import Batch, Geometry, Loss, Picture, View, paste

COLLAPSED: Final = 0.05
"""Deviation over patches, of vectors of deviation 1, below which `AlignmentLoss` warns."""
_UNRELATED: Final = 2.0
"""Expected mean squared difference of two independent vectors of mean 0 and deviation 1."""
_NONE: Final = (1.0, 1.0, 1.0)
_ALL: Final = (0.84, 0.37, 0.0)
_VISIBLE: Final = 0.25


class AlignmentLoss(Loss):
    """Mean squared difference of predicted and true latents, with a watch for collapse.

    Args:
        geometry: not needed.

    Source: CAE, arXiv 2202.03026, section 3.2. Its factor, 2 in the paper, is the recipe's
        ``weight``. Between two independent layer-normalised vectors it starts at 2.0.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives the mean over the K values of each position.

        Shape: prediction and target (B, G, M, K); result (B, G, M).
        """
        difference = prediction.float() - target.float()
        # Blanked, not multiplied by zero: the gradient would be 0 x NaN if padding held a NaN.
        return torch.where(valid[..., None], difference, 0.0).square().mean(dim=-1)

    def metrics(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Gives how much predictions and targets vary from position to position.

        ``prediction_std`` and ``target_std``: the standard deviation of each of the K values over
        the valid positions of all images, averaged over the values. Encoders that collapse say
        the same of every patch: then the second falls towards 0, and the loss with it.
        """
        return {
            "prediction_std": _deviation(prediction, valid),
            "target_std": _deviation(target, valid),
        }

    def warning(self, means: Mapping[str, float]) -> str | None:
        """Warns of a collapse: latents of unit variance that hardly differ between patches."""
        deviation = means["target_std"]
        if deviation >= COLLAPSED:
            return None
        return (
            f"the latents of different patches differ by {deviation:.3f} only: the encoder is "
            "collapsing, as it does when no other loss holds it. Is there a loss on tokens or "
            "pixels, and is its weight above 0?"
        )

    def render(self, prediction: Tensor, target: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Colours each masked patch by its error, up to that of two unrelated vectors."""
        error = self(prediction, target, batch.mask.valid) / _UNRELATED  # (B, G, M)
        share = error.clamp(0, 1).sqrt()[..., None]  # a distance: small errors differ visibly
        colour = torch.lerp(share.new_tensor(_NONE), share.new_tensor(_ALL), share)
        size = batch.mask.grid.patch_size
        patches = repeat(colour, "b g m c -> b g m c p q", p=size, q=size)
        ground = torch.full_like(batch.image[:, :1], _VISIBLE).repeat(1, len(_NONE), 1, 1)
        size_px = (ground.shape[2], ground.shape[3])
        view = View("alignment error", size_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        title = "alignment error (white: none, orange: as unrelated vectors)"
        return (Picture(title, paste(ground, patches, batch.mask), view=view),)


def _deviation(latent: Tensor, valid: Tensor) -> Tensor:
    kept = valid[..., None]
    latent = torch.where(kept, latent.float(), 0.0)
    num_valid = valid.sum()
    mean = latent.sum((0, 1, 2)) / num_valid.clamp(min=1)  # (K,)
    squares = torch.where(kept, latent - mean, 0.0).square().sum((0, 1, 2))
    return (squares / (num_valid - 1).clamp(min=1)).sqrt().mean()
