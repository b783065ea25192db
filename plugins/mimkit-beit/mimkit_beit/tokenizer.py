"""The discrete VAE of DALL·E (arXiv 2102.12092): from pixels to ids of visual tokens and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from dall_e import Decoder, Encoder
from einops import rearrange
from torch import Tensor, nn

from mimkit import Module, take
from mimkit_beit.convolution import aligned_convolution

Network = Literal["encoder", "decoder"]

STRIDE: Final = 8
"""Side of the square that one token stands for, in pixels of the token view."""

PIXEL_MEAN: Final = -0.125
PIXEL_STD: Final = 1.25
"""(x + 0.125) / 1.25 = 0.8 x + 0.1, the `map_pixels` of DALL·E: never near 0 or 1."""

_SCORES_AT_ONCE: Final = 2**26
"""256 MiB of them: those of 8,192 tokens with the published codebook."""
_SUMS_TO_FLOAT32: Final = hasattr(torch.ops.aten.mm, "dtype")
"""Whether torch multiplies float16 into float32, which before 2.8 it could not."""


@dataclass(frozen=True)
class Size:
    """How large the networks are.

    Args:
        codebook_size: K, how many codes there are.
        hidden_dim: channels of the encoder's first group of blocks; the others have 2, 4 and 8
            times as many. The decoder mirrors it.
        num_blocks: residual blocks in each of the four groups.
        code_dim: channels of what a code becomes in the decoder.
        channels: C, of the image.
    """

    codebook_size: int
    hidden_dim: int
    num_blocks: int
    code_dim: int = 128
    channels: int = 3


PUBLISHED: Final = Size(codebook_size=8192, hidden_dim=256, num_blocks=2)
"""OpenAI's: the encoder has 53,786,240 parameters in 74 tensors, the decoder 43,829,766."""


def make_network(network: Network, size: Size) -> nn.Module:
    """Makes an encoder or a decoder on the device ``"meta"``: shapes, but no weights yet."""
    made: nn.Module
    if network == "encoder":
        made = Encoder(
            n_hid=size.hidden_dim,
            n_blk_per_group=size.num_blocks,
            input_channels=size.channels,
            vocab_size=size.codebook_size,
            device=torch.device("meta"),
        )
    else:
        made = Decoder(
            n_init=size.code_dim,
            n_hid=size.hidden_dim,
            n_blk_per_group=size.num_blocks,
            output_channels=size.channels,
            vocab_size=size.codebook_size,
            device=torch.device("meta"),
        )
    return made


class Tokenizer(Module):
    """The encoder and, if there is one, the decoder, with given weights.

    Args:
        size: of both.
        encoder: state dict of the encoder.
        decoder: state dict of the decoder, or None.
    """

    def __init__(
        self, size: Size, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__()
        self.codebook_size = size.codebook_size
        self.encoder = make_network("encoder", size)
        self.encoder.load_state_dict(encoder, assign=True)
        self.decoder = None
        if decoder is not None:
            self.decoder = make_network("decoder", size)
            self.decoder.load_state_dict(decoder, assign=True)
        # Convolutions run faster in this layout, on CPU and GPU.
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, view: Tensor, at: Tensor | None = None) -> Tensor:
        """Gives the id of the best code of every token, row by row, or only of those at ``at``.

        On CUDA factors are rounded to float16, but scores are summed and compared in float32.

        Shape: view (B, C, 8 * rows, 8 * cols) in the token view's normalisation; at (B, ...)
        int64; result (B, N), or the shape of ``at``, int64.
        """
        # The classes of DALL·E choose their precision themselves, and take float32 only;
        # autocast to bfloat16 would round the scores far more coarsely.
        with torch.autocast(view.device.type, enabled=False):
            features = self._features(view.float())  # (B, N, E)
            # The last layer looks at one token alone: what nobody asks for is not scored.
            if at is not None and at[0].numel() < features.shape[1]:
                return self._best(take(features, at))
            ids = self._best(features)
        return ids if at is None else take(ids, at)

    def _features(self, view: Tensor) -> Tensor:
        """Gives what the codes are scored by, (B, N, E); E is 8 times ``hidden_dim``."""
        blocks: Any = self.encoder.get_submodule("blocks")
        first, *groups, last = blocks.children()
        if view.device.type == "cuda":
            weight, bias = first.w.half(), first.b.half()
            x = aligned_convolution(view.half(), weight) + bias[:, None, None]
        else:
            x = first(view)
        for group in groups:
            x = group(x)
        features: Tensor = last.relu(x)
        return rearrange(features, "b e rows cols -> b (rows cols) e")

    def _best(self, features: Tensor) -> Tensor:
        """Gives the best code of each token, (..., E) to (...); the first of several alike."""
        conv: Any = self.encoder.get_submodule("blocks.output.conv")
        weight, bias = conv.w.flatten(1), conv.b  # (K, E), (K,)
        halves = _SUMS_TO_FLOAT32 and features.dtype == torch.float16
        weight = weight.half() if halves else weight
        best = []
        # With all their scores at once a batch would need more memory than in any other layer.
        rows = max(1, _SCORES_AT_ONCE // len(weight))
        for part in torch.split(features.flatten(0, -2), rows):
            if halves:
                scores = torch.mm(part, weight.T, out_dtype=torch.float32).add_(bias)
            else:
                scores = F.linear(part.float(), weight, bias)
            best.append(scores.argmax(dim=1))
        return torch.cat(best).view(features.shape[:-1])

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Gives the picture that codes stand for, in the token view's normalisation.

        Shape: ids (B, rows, cols) int64; (B, C, 8 * rows, 8 * cols) float32.
        """
        assert self.decoder is not None
        codes = rearrange(F.one_hot(ids, self.codebook_size), "b rows cols k -> b k rows cols")
        with torch.autocast(ids.device.type, enabled=False):
            output: Tensor = self.decoder(codes.float())
        return picture(output)


def picture(output: Tensor) -> Tensor:
    """Gives the pixels that a decoder's output means, in the token view's normalisation.

    Shape: (B, 2 * C, H, W) to (B, C, H, W) float32. The other half are widths of distributions.
    """
    return output.float().chunk(2, dim=1)[0].sigmoid()


def map_pixels(pixels: Tensor) -> Tensor:
    """Applies the token view's normalisation to pixels in [0, 1]."""
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def unmap_pixels(view: Tensor) -> Tensor:
    """Undoes the token view's normalisation, to pixels in [0, 1]."""
    return (view * PIXEL_STD + PIXEL_MEAN).clamp(0, 1)
