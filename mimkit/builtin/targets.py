"""Targets that several methods share: pixels, and the encoder's own features."""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mimkit.errors import RecipeError
from mimkit.parts.bounds import Rate
from mimkit.parts.encoder import Encoder
from mimkit.parts.patches import paste, patchify, take
from mimkit.parts.records import Batch, Geometry, Picture, Width
from mimkit.parts.target import Target


class Pixels(Target):
    """The pixels of each target patch, (row, column, channel) flattened.

    Args:
        geometry: grid and channels of the image.
        normalize: subtract the patch's own mean and divide by its own standard deviation.

    Source: MAE, arXiv 2111.06377, section 3 ("reconstruction target"); as in its code, the
        variance is the unbiased one and 1e-6 is added to it.
    """

    ragged = True
    needs_encoder = False

    def __init__(self, geometry: Geometry, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.patch_size = geometry.grid.patch_size
        self.width = Width("vector", self.patch_size**2 * geometry.channels)

    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Reads the pixels at the targets.

        Shape: (B, G, M, K) with K = P * P * C.
        """
        pixels = self._pixels(batch)
        if not self.normalize:
            return pixels
        mean, std = self._statistics(pixels)
        return (pixels - mean) / std

    def render(self, prediction: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Pastes the predicted pixels into the image.

        Patches that were normalised get the mean and deviation of the true ones back.
        """
        prediction = prediction.float()
        if self.normalize:
            mean, std = self._statistics(self._pixels(batch))
            prediction = prediction * std + mean
        patches = rearrange(
            prediction,
            "b g m (p q c) -> b g m c p q",
            p=self.patch_size,
            q=self.patch_size,
        )
        return (Picture("predicted pixels", paste(batch.image, patches, batch.mask)),)

    def _pixels(self, batch: Batch) -> Tensor:
        patches = patchify(batch.image, self.patch_size)  # (B, N, C, P, P)
        return take(rearrange(patches, "b n c p q -> b n (p q c)"), batch.mask.target)

    @staticmethod
    def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()


class Latent(Target):
    """What the encoder itself, or a slow copy of it, says of the target patches.

    Args:
        geometry: gives the encoder's width.
        sees: what enters that pass: only the patches of each target group, or all of the image.
        detach: stop the gradient; with false the encoder is trained from this side too.
        momentum: use a teacher, the exponential moving average of the encoder with this
            momentum, which rises linearly to 1 until training ends; None: the encoder itself.
        lag: use the encoder as it was one optimizer step earlier; only without momentum.
        norm: layer-normalise each target, without learned scale.
        eval_mode: run that pass without dropout and stochastic depth and with running batch
            statistics; else in the mode of training.

    Raises: RecipeError if a teacher is asked for a gradient, or if momentum and lag are both
        given.
    Source: candidates of Selfie, arXiv 1906.02940, section 3 (targets, no detach); alignment
        target of CAE, arXiv 2202.03026, section 3.2 (targets, detach; the first of its
        released codes has lag); I-JEPA, arXiv 2301.08243, section 3
        (all, momentum 0.996, norm).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        sees: Literal["targets", "all"] = "targets",
        detach: bool = True,
        momentum: Rate | None = None,
        lag: bool = False,
        norm: bool = False,
        eval_mode: bool = False,
    ) -> None:
        super().__init__()
        if lag and momentum is not None:
            raise RecipeError(
                "target 'latent', lag: must be false with a moving average, but momentum is "
                f"{momentum}."
            )
        if (lag or momentum is not None) and not detach:
            given = "lag = true" if lag else f"momentum = {momentum}"
            raise RecipeError(
                "target 'latent', detach: must be true with a teacher, which no gradient may "
                f"reach, but is false with {given}."
            )
        self.sees = sees
        self.detach = detach
        self.momentum = momentum
        self.lag = lag
        self.norm = norm
        self.eval_mode = eval_mode
        self.width = Width("vector", geometry.embed_dim)
        # A padded position would enter a pass over the targets like a true one.
        self.ragged = sees == "all"
        self.teacher: Encoder | None = None
        self.next_teacher: Encoder | None = None

    def bind(self, encoder: Encoder) -> None:
        """Makes the teacher, if there is one, a copy of the encoder."""
        if self.lag or self.momentum is not None:
            self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        if self.lag:
            self.next_teacher = copy.deepcopy(encoder).requires_grad_(False)

    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Encodes once more.

        Shape: (B, G, M, D).
        """
        source = encoder if self.teacher is None else self.teacher
        training = source.training
        if self.eval_mode:
            source.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            latent = self._encode(batch, source)
        if self.eval_mode:
            source.train(training)
        if self.norm:
            latent = F.layer_norm(latent.float(), latent.shape[-1:])
        return latent

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Moves the teacher towards the encoder; running statistics are copied."""
        if self.teacher is not None and self.next_teacher is not None:
            _copy(self.next_teacher, self.teacher)
            _copy(encoder, self.next_teacher)
        if self.teacher is None or self.momentum is None:
            return
        momentum = self.momentum + (1 - self.momentum) * progress
        move = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
        move(list(self.teacher.parameters()), list(encoder.parameters()), 0)
        for mine, theirs in zip(self.teacher.buffers(), encoder.buffers(), strict=True):
            mine.copy_(theirs)

    def _encode(self, batch: Batch, source: Encoder) -> Tensor:
        target = batch.mask.target  # (B, G, M)
        if self.sees == "all":
            return take(source(batch.image).patches, target)
        num_groups = target.shape[1]
        image = batch.image
        if num_groups > 1:  # each group is encoded on its own
            image = repeat(image, "b c h w -> (b g) c h w", g=num_groups)
        patches = source(image, target.flatten(0, 1)).patches  # (B * G, M, D)
        return rearrange(patches, "(b g) m d -> b g m d", g=num_groups)


@torch.no_grad()
def _copy(source: Encoder, destination: Encoder) -> None:
    # Not all in one call, which torch has for no weights that are spread over processes.
    for of in (nn.Module.parameters, nn.Module.buffers):
        for mine, theirs in zip(of(destination), of(source), strict=True):
            mine.copy_(theirs)
