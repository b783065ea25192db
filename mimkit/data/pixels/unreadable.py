"""What is said of image files that cannot be used, and what readers raise of them."""

import struct
import zlib
from typing import Final

from PIL import Image

# What Pillow's readers raise on files that are cut, corrupt, too large or of an unknown kind.
FAILURES: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableError(Exception):
    """The bytes are no image that can be used; the text says why."""


class MisfitError(UnreadableError):
    """The image is sound, but has another number of channels, or another depth, than it must."""
