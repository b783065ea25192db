"""Pictures put into the page itself, within what a page may weigh."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mimkit.errors import DataError

MAX_PNG_BYTES = 400_000
"""A larger picture is put into the page in a denser format; the file stays as it is."""
MAX_PICTURE_BYTES = 3_000_000
"""All pictures of a page together: the page must stay easy to open and to send."""
PICTURE_SCALE = 1.6
"""Pixels of a picture per pixel of the page, so that it is sharp on fine screens too."""


@dataclass(frozen=True)
class Shown:
    """A picture as the page holds it; its name is that of its file, without ending."""

    name: str
    source: str
    width: int
    description: str


def embedded(folder: Path) -> tuple[list[Shown], list[str]]:
    """Embeds the PNG files of a folder; those beyond the page's budget are named instead.

    Raises: DataError if one of them is not a picture.
    """
    shown, left_out, spent = [], [], 0
    for path in sorted(folder.glob("*.png")):
        content, kind = path.read_bytes(), "png"
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except OSError as error:
            raise DataError(
                f"{path}: must be a picture, but cannot be read ({error}). Remove it."
            ) from error
        width = round(image.width / PICTURE_SCALE)
        description = str(image.info.get("Description") or path.stem.replace("_", " "))
        if len(content) > MAX_PNG_BYTES:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=82)
            content, kind = buffer.getvalue(), "webp"
        if spent + len(content) > MAX_PICTURE_BYTES:
            left_out.append(f"{folder.name}/{path.name}")
            continue
        spent += len(content)
        encoded = base64.b64encode(content).decode("ascii")
        source = f"data:image/{kind};base64,{encoded}"
        shown.append(Shown(path.stem, source, width, description))
    return shown, left_out
