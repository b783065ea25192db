"""Image files without their metadata, where these keep sound pixels from being read."""

import re
import struct
from collections.abc import Iterator
from typing import Final

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_WEBP_NOTES: Final = frozenset((b"EXIF", b"XMP ", b"ICCP"))
_WEBP_NOTE_FLAGS: Final = 0b00101100
"""Bits of a WebP header that announce these chunks: colours, EXIF, XMP."""
_AVIF_NOTE: Final = re.compile(rb"(infe.{8})(?:Exif|mime)", re.DOTALL)
_TIFF_PIXELS: Final = frozenset(
    (*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325)
) | frozenset((*range(330, 340), 347, *range(512, 522), *range(529, 533)))
"""Tags that say where a TIFF's pixels lie, and how."""
_TIFF_ORIENTATION: Final = 274
_START_OF_SCAN: Final = 0xDA


def without_metadata(content: bytes) -> Iterator[bytes]:
    """Gives an image file without texts and colour profiles, then also without EXIF.

    What is needed for the pixels stays: PNG's palette and transparency, JPEG's kind of colours.
    Nothing is given where that leaves the file as it is, or where its structure is broken.

    Source: PNG (third edition), 5.3; ITU-T T.81, B.1; TIFF 6.0, section 2; WebP container
        specification; ISO/IEC 23008-12 (AVIF's items).
    """
    last = content
    for keep_exif in (True, False):
        try:
            stripped = _strip(content, keep_exif)
        except (struct.error, IndexError):
            return
        if stripped != last:
            last = stripped
            yield stripped


def _strip(content: bytes, keep_exif: bool) -> bytes:
    if content.startswith(_PNG):
        return _strip_png(content, keep_exif)
    if content.startswith(b"\xff\xd8"):
        return _strip_jpeg(content, keep_exif)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _strip_webp(content, keep_exif)
    if content[:4] in (b"II*\0", b"MM\0*"):
        return _strip_tiff(content, keep_exif)
    if content[4:8] == b"ftyp" and not keep_exif:
        return _AVIF_NOTE.sub(rb"\1none", content)
    return content


def _strip_png(content: bytes, keep_exif: bool) -> bytes:
    kept = _PNG_PIXELS | {b"eXIf"} if keep_exif else _PNG_PIXELS
    pieces, place = [_PNG], len(_PNG)
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 12 + length
        if kind in kept:
            pieces.append(content[place:end])
        place = end
    return b"".join(pieces)


def _strip_jpeg(content: bytes, keep_exif: bool) -> bytes:
    pieces, place = [content[:2]], 2
    while True:
        while content[place + 1] == 0xFF:  # filling
            place += 1
        marker = content[place + 1]
        if content[place] != 0xFF or marker == _START_OF_SCAN:
            return b"".join((*pieces, content[place:]))
        (length,) = struct.unpack_from(">H", content, place + 2)
        end = place + 2 + length
        exif = marker == 0xE1 and content[place + 4 : place + 10] == b"Exif\0\0"
        # Of JFIF's and Adobe's segments, which tell how the colours are stored, libjpeg reads those
        # that are long enough; FE are comments.
        needed = {0xE0: 16, 0xEE: 14}.get(marker)
        note = 0xE0 <= marker <= 0xEF or marker == 0xFE
        note = note if needed is None else length < needed
        if not note or (exif and keep_exif):
            pieces.append(content[place:end])
        place = end


def _strip_webp(content: bytes, keep_exif: bool) -> bytes:
    dropped = _WEBP_NOTES - {b"EXIF"} if keep_exif else _WEBP_NOTES
    pieces, place = [], 12
    while place < len(content):
        kind, length = struct.unpack_from("<4sI", content, place)
        end = place + 8 + length + length % 2
        chunk = content[place:end]
        if kind == b"VP8X":
            flags = chunk[8] & ~(_WEBP_NOTE_FLAGS & ~(8 if keep_exif else 0))
            chunk = chunk[:8] + bytes((flags,)) + chunk[9:]
        if kind not in dropped:
            pieces.append(chunk)
        place = end
    body = b"WEBP" + b"".join(pieces)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _strip_tiff(content: bytes, keep_exif: bool) -> bytes:
    kept = _TIFF_PIXELS | {_TIFF_ORIENTATION} if keep_exif else _TIFF_PIXELS
    order = "<" if content.startswith(b"II") else ">"
    (place,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, place)
    end = place + 2 + 12 * count
    entries = [content[start : start + 12] for start in range(place + 2, end, 12)]
    entries = [each for each in entries if struct.unpack(f"{order}H", each[:2])[0] in kept]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    # In place: all that these entries lead to stays where it is.
    return content[:place] + directory.ljust(end + 4 - place, b"\0") + content[end + 4 :]
