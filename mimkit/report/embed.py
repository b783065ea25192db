"""Pictures put into the page itself, within what a page may weigh."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mimkit.errors import DataError

MAX_PNG_BYTES = 400_000
"""A larger picture is put into the page in a denser format; the file stays as it is."""
MAX_DENSE_WIDTH = 2_400
"""Pixels; such a picture is also shrunk to this width."""
MAX_PICTURE_BYTES = 5_000_000
"""All pictures of a page; as text they weigh a third more, and the page stays below 10 MB."""
PICTURE_SCALE = 1.6
"""Pixels of a picture per pixel of the page, so that it is sharp on fine screens too."""


@dataclass(frozen=True)
class Shown:
    """A picture as the page holds it; its name is that of its file, without ending."""

    name: str
    source: str
    width: int
    description: str


def embedded(paths: Iterable[Path], max_bytes: int | None = None) -> dict[Path, Shown]:
    """Embeds picture files, but for the largest ones where all of them would be too much.

    Args:
        paths: of the files.
        max_bytes: what all may weigh together, before the text encoding adds a third; None for
            what a page holds.

    Returns: each path to its picture, in the given order; what was left out is missing.
    Raises: DataError if one of them is not a picture.
    """
    encoded = {path: _encoded(path) for path in paths}
    limit = MAX_PICTURE_BYTES if max_bytes is None else max_bytes
    while sum(len(content) for content, _ in encoded.values()) > limit:
        del encoded[max(encoded, key=lambda path: len(encoded[path][0]))]
    return {path: shown for path, (_, shown) in encoded.items()}


def _encoded(path: Path) -> tuple[bytes, Shown]:
    content = path.read_bytes()
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except OSError as error:
        raise DataError(
            f"{path}: must be a picture, but cannot be read ({error}). Remove it."
        ) from error
    kind = (image.format or "").lower()
    width = round(image.width / PICTURE_SCALE)
    description = str(image.info.get("Description") or path.stem.replace("_", " "))
    if kind == "png" and len(content) > MAX_PNG_BYTES:
        buffer = io.BytesIO()
        dense = image.convert("RGB")
        dense.thumbnail((MAX_DENSE_WIDTH, image.height))
        dense.save(buffer, "WEBP", quality=82)
        content, kind = buffer.getvalue(), "webp"
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return content, Shown(path.stem, source, width, description)
