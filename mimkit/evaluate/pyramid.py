"""Maps of four sizes from a plain transformer, whose blocks all give the same size."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from mimkit.errors import BoundaryError, RecipeError
from mimkit.evaluate.conv_norm import Norm, make_norm
from mimkit.parts.dense import Level

_FACTOR: Final = 4
"""By how much the first map is enlarged."""


class Pyramid(nn.Module):
    """Turns maps of one stride into four: a quarter, half, all and double of it.

    With patches of 16 px the strides are 4, 8, 16 and 32. The first map is enlarged by two
    transposed convolutions with a norm and GELU between, the second by one, the third stays, the
    fourth is pooled to the maximum of 2 x 2 cells (of an odd row or column at the end none are
    left). Maps whose strides already differ are passed on as they are.

    Args:
        levels: of the maps that come in.
        norm: "batch" as in the papers, or "group".

    Attributes:
        levels: of the maps that go out.

    Raises: RecipeError if maps of one stride are not four, or the stride is no multiple of 4.
    Source: the segmentation and detection code of BEiT (arXiv 2106.08254) and CAE (2202.03026).
    """

    def __init__(self, levels: Sequence[Level], *, norm: Norm = "batch") -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.scales: nn.ModuleList | None = None
        strides = {level.stride for level in levels}
        if len(strides) > 1:
            return
        if len(levels) != 4:
            raise RecipeError(
                f"a pyramid is made of four maps of one stride, but there are {len(levels)}. Give "
                "four in the encoder's DenseBackbone.levels, or maps of different strides."
            )
        (stride,) = strides
        if stride % _FACTOR:
            raise RecipeError(
                f"a pyramid enlarges maps {_FACTOR} times, so their stride must be a multiple of "
                f"{_FACTOR} px, but is {stride} px. Use patches of another size."
            )
        first, second, third, fourth = (level.channels for level in levels)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(_double(first), make_norm(norm, first), nn.GELU(), _double(first)),
                _double(second),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.levels = (
            Level(first, stride // 4),
            Level(second, stride // 2),
            Level(third, stride),
            Level(fourth, stride * 2),
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Resizes the maps.

        Shape: four times (B, C, rows, cols) to (B, C, 4 rows, 4 cols), (B, C, 2 rows, 2 cols), the
        same, and (B, C, rows // 2, cols // 2).
        Raises: BoundaryError if a map has a single row or column, which cannot be pooled.
        """
        if self.scales is None:
            return tuple(maps)
        rows, cols = maps[-1].shape[-2:]
        if min(rows, cols) < 2:
            raise BoundaryError(
                f"a pyramid needs maps of at least 2 x 2 cells, but these have {rows} x {cols}. "
                "Use larger images."
            )
        return tuple(scale(each) for scale, each in zip(self.scales, maps, strict=True))


def _double(channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
