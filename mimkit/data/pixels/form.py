"""What a recipe wants images to be: how many channels, and which values are black and white."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mimkit.data.pixels.raster import Scale

Range = Literal["measured", "type"] | Scale
RGB = 3


@dataclass(frozen=True)
class Form:
    """What images are made into.

    Args:
        channels: C. Of 8-bit images any makes three (RGB) or one (grey); all others are taken as
            they are stored, and must have as many.
        range: the stored values that become 0 and 1. "measured": of images of more than 8 bits the
            least and the greatest of the training split, of others 0 and 255. "type": what their
            type can hold, and 8 bits are kept.
    """

    channels: int = RGB
    range: Range = "measured"

    @property
    def key(self) -> str:
        """Tells forms apart in the cache; nothing for the usual one."""
        return "" if self == Form() else f"\0{self.channels} {self.range}"
