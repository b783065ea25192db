"""The pointer: which of the hidden patches belongs here? Source: Selfie, arXiv 1906.02940."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mimkit import Batch, Geometry, Loss, Picture, paste, patchify, take


class PointerLoss(Loss):
    """Cross-entropy of choosing the right vector among all of the group.

    Row m of the target is the answer to query m; the other hidden patches of the same image are
    the distractors.

    Args:
        geometry: not needed.
        logit_scale: "none": plain dot products; "sqrt_dim": divided by the root of the width,
            as in attention, so that the loss starts near that of chance.

    Source: arXiv 1906.02940, section 3, which names no scale; "sqrt_dim" is an extension.
    """

    def __init__(
        self, geometry: Geometry, *, logit_scale: Literal["none", "sqrt_dim"] = "none"
    ) -> None:
        super().__init__()
        self.logit_scale = logit_scale

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives one cross-entropy per hidden patch, over the valid candidates of its group.

        Shape: prediction and target (B, G, M, D); result (B, G, M).
        """
        logits = self._logits(prediction, target, valid)
        flat = logits.flatten(0, -2)  # (B * G * M, M)
        right = _right(valid).flatten()
        return F.cross_entropy(flat, right, reduction="none").view(valid.shape)

    def metrics(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Gives the share of right choices, and that of a blind guess."""
        chosen = self._logits(prediction, target, valid).argmax(dim=-1)
        num_valid = valid.sum().clamp(min=1)
        return {
            "accuracy": ((chosen == _right(valid)) & valid).sum() / num_valid,
            "chance": valid.any(dim=-1).sum() / num_valid,
        }

    def render(self, prediction: Tensor, target: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Puts at every hidden place the patch that the pointer chose for it."""
        mask = batch.mask
        chosen = self._logits(prediction, target, mask.valid).argmax(dim=-1)  # (B, G, M)
        source = mask.target.gather(-1, chosen)
        patches = take(patchify(batch.image, mask.grid.patch_size), source)  # (B, G, M, C, P, P)
        correct = (chosen == _right(mask.valid)) & mask.valid
        return (Picture("chosen patches", paste(batch.image, patches, mask), correct),)

    def _logits(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        # Autocast would turn float32 factors of a product into bfloat16 again.
        with torch.autocast(prediction.device.type, enabled=False):
            query = torch.where(valid[..., None], prediction.float(), 0.0)
            candidate = torch.where(valid[..., None], target.float(), 0.0)
            logits = query @ rearrange(candidate, "b g m d -> b g d m")  # (B, G, M, M)
            if self.logit_scale == "sqrt_dim":
                logits = logits * target.shape[-1] ** -0.5
            # Finite, so that a group without any valid candidate gives no NaN.
            lowest = torch.finfo(logits.dtype).min
            return logits.masked_fill(~valid[..., None, :], lowest)


def _right(valid: Tensor) -> Tensor:
    return torch.arange(valid.shape[-1], device=valid.device).expand(valid.shape)
