"""Contact sheets: one row per image, one titled column per way of looking at it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mimkit.evaluate.shown import visible
from mimkit.files import write_atomic
from mimkit.parts.patches import patchify, unpatchify
from mimkit.parts.records import Grid, Mask, View

CELL = 256
"""Least side of one image on the sheet, in pixels; smaller images are enlarged, never blurred."""
MAX_ROWS = 6
MAX_COLUMNS = 8
MARGIN = 24
GAP = 12
FONT_SIZE = 22
BACKGROUND = "#ffffff"
INK = "#2b2f36"
# Told apart by red-green blind eyes too (Okabe and Ito); wrong targets are also crossed out.
RIGHT = "#009e73"
WRONG = "#d55e00"
MASKED_GREY = 0.62
_LINE = 2 * FONT_SIZE
"""Of keys below the images."""


@dataclass(frozen=True)
class Column:
    """One way of looking at the images of a sheet.

    Args:
        title: what it shows, in a few words.
        image: (B, C, H, W) in [0, 1].
        correct: (B, G, M) bool or None: targets that are framed as right or wrong.
    """

    title: str
    image: Tensor
    correct: Tensor | None = None


def denormalise(image: Tensor, view: View) -> Tensor:
    """Undoes the normalisation of ``view``, for looking at.

    Shape: (B, C, H, W) to (B, C, H, W) in [0, 1].
    """
    mean = torch.tensor(view.mean, device=image.device)[:, None, None]
    std = torch.tensor(view.std, device=image.device)[:, None, None]
    return (image * std + mean).clamp(0, 1)


def masked_input(image: Tensor, mask: Mask) -> Tensor:
    """Shows what the encoder receives: every patch outside the context, or hidden, is grey.

    Shape: (B, C, H, W) in [0, 1] to the same.
    """
    patches = patchify(image, mask.grid.patch_size)  # (B, N, C, P, P)
    seen = torch.zeros(patches.shape[:2], dtype=torch.bool, device=image.device)
    seen = seen.scatter(1, mask.context, ~mask.hidden)  # (B, N)
    shown = torch.where(seen[:, :, None, None, None], patches, MASKED_GREY)
    return unpatchify(shown, mask.grid)


def contact_sheet(
    path: Path,
    columns: Sequence[Column],
    mask: Mask | None,
    *,
    description: str = "",
    column_width: int | None = None,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG with the columns side by side, atomically.

    Args:
        path: where to.
        columns: all of the same B images. Where one says what is ``correct``, the valid target
            patches are framed in green or red.
        mask: the masks of these images; None for a sheet that frames no targets.
        description: what the sheet shows, in a sentence; kept in the file, for the report.
        column_width: in pixels, with every image in a row of its own, so that sheets can be read
            side by side. None: a multiple of the images' width, and many images of few columns
            go in two blocks.
        colours: what stands for what, name to colour as ``#rrggbb``, written below the images.
    """
    height, width = columns[0].image.shape[-2:]
    if column_width is None:
        scale: float = max(1, CELL // max(max(column.image.shape[-2:]) for column in columns))
    else:
        scale = column_width / width
    height, width = round(height * scale), round(width * scale)
    titles = [_wrap(column.title, width) for column in columns]
    num_images = columns[0].image.shape[0]
    # Many images of few columns go side by side, so that the sheet fits a screen.
    wide = column_width is None and num_images > MAX_ROWS and 2 * len(columns) <= MAX_COLUMNS
    num_blocks = 2 if wide else 1
    num_rows = -(-num_images // num_blocks)
    block_width = len(columns) * (width + GAP) + MARGIN
    top = MARGIN + FONT_SIZE * 5 // 4 * max(len(lines) for lines in titles) + GAP
    legend = any(column.correct is not None for column in columns)
    keys = _placed(colours or {}, MARGIN + num_blocks * block_width - GAP)
    bottom = top + num_rows * (height + GAP) - GAP + MARGIN + (2 * FONT_SIZE if legend else 0)
    lines = max((line for *_, line in keys), default=-1) + 1
    sheet = Image.new(
        "RGB",
        (MARGIN + num_blocks * block_width - GAP, bottom + lines * _LINE),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for block, (number, column) in itertools.product(range(num_blocks), enumerate(columns)):
        left = MARGIN + block * block_width + number * (width + GAP)
        title = "\n".join(titles[number])
        draw.multiline_text((left, top - GAP), title, INK, _font(), anchor="ld", spacing=4)
        for row in range(min(num_rows, num_images - block * num_rows)):
            image = block * num_rows + row
            upper = top + row * (height + GAP)
            sheet.paste(_resized(_pixels(column.image[image]), width, height), (left, upper))
            if column.correct is not None:
                assert mask is not None, f"column {column.title!r} frames targets without a mask"
                for patch in _framed(column.correct[image], mask, image):
                    _frame(draw, patch, mask.grid, (left, upper), (width, height))
    if legend:
        _draw_legend(draw, bottom - MARGIN)
    for name, colour, left, line in keys:
        upper = bottom + line * _LINE - MARGIN // 2
        draw.rectangle((left, upper, left + FONT_SIZE, upper + FONT_SIZE), fill=colour)
        draw.text((left + FONT_SIZE + GAP, upper + FONT_SIZE // 2), name, INK, _font(), anchor="lm")
    about = PngInfo()
    about.add_itxt("Description", description)
    write_atomic(path, lambda temporary: sheet.save(temporary, "PNG", pnginfo=about))


@dataclass(frozen=True)
class _Patch:
    position: int
    correct: bool


def _framed(correct: Tensor, mask: Mask, image: int) -> list[_Patch]:
    positions, right, valid = (
        tensor.flatten().tolist() for tensor in (mask.target[image], correct, mask.valid[image])
    )
    return [
        _Patch(position, bool(is_right))
        for position, is_right, kept in zip(positions, right, valid, strict=True)
        if kept
    ]


def _frame(
    draw: ImageDraw.ImageDraw,
    patch: _Patch,
    grid: Grid,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Frames one patch; a wrong one is crossed in its corner too."""
    row, col = divmod(patch.position, grid.cols)
    (left, upper), (width, height) = corner, size
    x0, x1 = left + col * width // grid.cols, left + (col + 1) * width // grid.cols - 1
    y0, y1 = upper + row * height // grid.rows, upper + (row + 1) * height // grid.rows - 1
    side = x1 - x0
    line = max(2, side // 16)
    colour = RIGHT if patch.correct else WRONG
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)
    if not patch.correct:
        arm = max(4, side // 4)
        draw.rectangle((x0, y0, x0 + arm, y0 + arm), fill=colour)
        inner = (x0 + line, y0 + line, x0 + arm - line, y0 + arm - line)
        draw.line(inner, "white", max(1, line // 2))
        draw.line((inner[0], inner[3], inner[2], inner[1]), "white", max(1, line // 2))


def _draw_legend(draw: ImageDraw.ImageDraw, bottom: int) -> None:
    left = MARGIN
    for colour, text in ((RIGHT, "right"), (WRONG, "wrong")):
        draw.rectangle(
            (left, bottom - FONT_SIZE, left + FONT_SIZE, bottom), outline=colour, width=4
        )
        left += FONT_SIZE + GAP
        draw.text((left, bottom - FONT_SIZE // 2), text, INK, _font(), anchor="lm")
        left += round(_font().getlength(text)) + 2 * MARGIN


def _placed(colours: Mapping[str, str], width: int) -> list[tuple[str, str, int, int]]:
    """Puts keys into lines that are no wider than the sheet: name, colour, left, and line."""
    found: list[tuple[str, str, int, int]] = []
    left, line = MARGIN, 0
    for name, colour in colours.items():
        needed = FONT_SIZE + GAP + round(_font().getlength(name))
        if left > MARGIN and left + needed > width:
            left, line = MARGIN, line + 1
        found.append((name, colour, left, line))
        left += needed + MARGIN
    return found


def _pixels(image: Tensor) -> Image.Image:
    """Shows the first three channels, or the first alone in grey."""
    values = visible(image.detach().float().cpu())
    return Image.fromarray(rearrange(values, "c h w -> h w c").numpy())


def _resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    shrinks = picture.width > width
    return picture.resize(
        (width, height), Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    )


def _wrap(title: str, width: int) -> list[str]:
    """Breaks a title into lines no wider than its column, where words allow it."""
    lines = [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and covers what titles may contain."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE
    )
