"""What is said about an image never decides whether its pixels can be used."""

import random
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mimkit.data.pixels.decode import UnreadableError, decode, look, measure

SMOOTH = np.linspace(0, 255, 21 * 34 * 3).reshape(21, 34, 3).astype(np.uint8)
IMAGE = Image.fromarray(SMOOTH)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def tags(orientation=1, kind=3, count=1):
    """EXIF of one entry, byte by byte: 42 in two orders, the place of the entries, one entry."""
    value = {1: "B", 2: "c", 3: "H", 4: "I", 9: "i", 11: "f"}.get(kind, "H")
    value = struct.pack(f"<{value}", orientation if kind != 2 else bytes([48 + orientation % 10]))
    entry = struct.pack("<HHI4s", 0x0112, kind, count, value.ljust(4, b"\0"))
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def saved(kind, **options):
    file = BytesIO()
    IMAGE.save(file, kind, **options)
    return file.getvalue()


def with_exif(kind, exif):
    """A file with these EXIF bytes, put in by hand where Pillow would mend them."""
    if kind == "PNG":
        plain = saved("PNG")
        return plain[:33] + chunk(b"eXIf", exif) + plain[33:]
    if kind == "JPEG":
        plain, segment = saved("JPEG", quality=95), b"Exif\0\0" + exif
        return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    if kind == "TIFF":
        plain = saved("TIFF", tiffinfo={0x0112: 1})
        place = plain.index(struct.pack("<HHI", 0x0112, 3, 1))
        return plain[:place] + exif[10:22] + plain[place + 12 :]
    if kind == "AVIF":  # Pillow replaces orientation; room is left and filled in afterwards
        filler = b"II*\0" + struct.pack("<IH", 8, 1) + bytes(12 + 4 + max(0, len(exif) - 26))
        plain = saved("AVIF", exif=filler, quality=100)
        assert plain.count(filler) == 1
        return plain.replace(filler, exif.ljust(len(filler), b"\0"))
    return saved("WEBP", exif=exif, lossless=True)


@pytest.mark.parametrize("orientation", [*range(10), 255, 65535])
@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_measured_as_it_is_decoded_and_turned_as_pillow_turns_it(kind, orientation):
    content = with_exif(kind, tags(orientation))
    found = decode(content)
    assert measure(content) == found.size[::-1]
    expected = ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB")
    assert found.size == expected.size
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    if orientation not in range(2, 9) or kind == "AVIF":  # where the file's own items say it
        assert found.size == IMAGE.size


@pytest.mark.parametrize("entry", [(9, 4), (6, 1), (6, 2), (9, 9), (6.0, 11), (6, 3, 3), (6, 99)])
@pytest.mark.parametrize("kind", FORMATS)
def test_an_orientation_of_an_odd_type_is_measured_as_it_is_decoded(kind, entry):
    content = with_exif(kind, tags(*entry))
    assert measure(content) == decode(content).size[::-1]
    assert sorted(decode(content).size) == sorted(IMAGE.size)


@pytest.mark.parametrize("value", ["0", "6", "9"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_counts_as_one_in_exif(kind, value):
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        content = saved("PNG", pnginfo=info)
    else:
        content = saved(kind, **{"tiffinfo": {700: xmp.encode()}} if kind == "TIFF" else {
            "xmp": xmp.encode()
        })  # fmt: skip
    assert measure(content) == decode(content).size[::-1]
    assert decode(content).size == (IMAGE.size[::-1] if value == "6" else IMAGE.size)


@pytest.mark.parametrize("kind", FORMATS)
def test_malformed_exif_costs_no_image(kind):
    chance = random.Random(0)
    whole = saved("PNG")
    own = {"PNG": whole, "TIFF": saved("TIFF")}.get(kind) or with_exif(kind, tags())
    expected = np.asarray(decode(own))
    rich = Image.Exif()
    rich[0x0112] = 1
    rich[0x010F] = "maker"
    rich.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    rich.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    sound = rich.tobytes().removeprefix(b"Exif\0\0")
    for attempt in range(150):
        damaged = bytearray(sound if kind != "TIFF" else tags())
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if kind == "TIFF":
            if damaged[10:12] != b"\x12\x01":
                continue  # another tag, which may be one that says how the pixels lie
        elif attempt % 3 == 0:
            del damaged[chance.randrange(len(damaged)) :]
        content = with_exif(kind, bytes(damaged))
        found = np.asarray(decode(content))
        assert measure(content) == found.shape[:2]
        assert sorted(found.shape) == sorted(expected.shape)
        if found.shape == expected.shape and np.array_equal(found, expected):
            continue
        assert any(  # the damage may make another orientation of it
            np.array_equal(found, np.asarray(ImageOps.exif_transpose(turned)))
            for turned in (_oriented(Image.fromarray(expected), each) for each in range(2, 9))
        )


def _oriented(image, orientation):
    exif = image.getexif()
    exif[0x0112] = orientation
    return image


@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005])
@pytest.mark.parametrize("place", [1, 9, 10**6, 2**32 - 1])
def test_a_tiff_whose_links_lead_nowhere_is_read(tag, place):
    plain = saved("TIFF", tiffinfo={tag: 8})
    (entry,) = (plain.index(struct.pack("<HHI", tag, kind, 1)) for kind in (4, 13) if struct.pack(
        "<HHI", tag, kind, 1) in plain)  # fmt: skip
    content = plain[: entry + 8] + struct.pack("<I", place) + plain[entry + 12 :]
    assert np.array_equal(np.asarray(decode(content)), SMOOTH)


LONG = bytes(2**20 + 1)
PNG_NOTES = {
    "a long text": chunk(b"zTXt", b"note\0\0" + zlib.compress(LONG)),
    "a long international text": chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(LONG)),
    "a long colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
    "texts without end": chunk(b"tEXt", b"note\0" + b"x" * 900_000) * 80,
    "a broken profile": chunk(b"iCCP", b"profile\0\0broken"),
    "a profile of a kind that there is not": chunk(b"iCCP", b"profile\0\7broken"),
    "a text with a wrong checksum": chunk(b"tEXt", b"note\0words")[:-4] + b"\0\0\0\0",
    "a density cut short": chunk(b"pHYs", b"\0"),
    "an animation of no frames": chunk(b"acTL", bytes(8)),
    "EXIF that is none": chunk(b"eXIf", b"broken"),
    "EXIF cut short": chunk(b"eXIf", tags(6)[:15]),
}


@pytest.mark.parametrize("note", PNG_NOTES)
@pytest.mark.parametrize("last", [False, True], ids=["before", "after the pixels"])
def test_a_png_is_read_whatever_is_noted_in_it(note, last):
    plain = saved("PNG")
    place = len(plain) - 12 if last else 33
    content = plain[:place] + PNG_NOTES[note] + plain[place:]
    assert np.array_equal(np.asarray(decode(content)), SMOOTH)
    assert measure(content) == SMOOTH.shape[:2]


def test_what_cannot_be_read_does_not_hide_the_orientation_beside_it():
    plain = saved("PNG")
    notes = chunk(b"eXIf", tags(6)) + PNG_NOTES["a long text"]
    assert measure(plain[:33] + notes + plain[33:]) == (34, 21)


def test_limits_of_pillow_that_others_rely_on_stay():
    plain = saved("PNG")
    before = [getattr(PngImagePlugin, f"MAX_TEXT_{each}") for each in ("CHUNK", "MEMORY")]
    decode(plain[:33] + PNG_NOTES["a long text"] + plain[33:])
    assert before == [getattr(PngImagePlugin, f"MAX_TEXT_{each}") for each in ("CHUNK", "MEMORY")]


@pytest.mark.parametrize(
    "segment",
    [
        (0xE2, b"MPF\0broken"),
        (0xE2, b"MPF\0" + b"II*\0" + struct.pack("<IHHHII", 8, 1, 0xB001, 4, 1, 2) + bytes(4)),
        (0xE2, b"ICC_PROFILE\0"),
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x01\0"),
        (0xEE, b"Adobe"),
        (0xE1, b"Exif\0\0"),
        (0xE0, b"JFIF"),
    ],
    ids=lambda segment: f"{segment[0]:x}-{len(segment[1])}",
)
def test_a_jpeg_is_read_whatever_its_segments_say(segment):
    marker, said = segment
    plain = saved("JPEG", quality=95)
    put = bytes((0xFF, marker)) + struct.pack(">H", len(said) + 2) + said
    content = plain[:2] + put + plain[2:]
    assert np.array_equal(np.asarray(decode(content)), np.asarray(decode(plain)))
    assert measure(content) == SMOOTH.shape[:2]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_whose_pixels_are_cut_off_is_still_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, kind)
    content = file.getvalue()
    if kind == "PNG":
        content = content[:33] + PNG_NOTES["a long text"] + content[33 : len(content) // 2]
    else:
        content = content[: len(content) // 2]
    with pytest.raises(UnreadableError):
        decode(content)


class TestValues:
    def deep(self, values, kind="TIFF"):
        file = BytesIO()
        Image.fromarray(values).save(file, kind)
        return look(file.getvalue()).values

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_of_images_in_16_bits_the_range_is_told(self, kind):
        values = np.arange(5, 5 + 4091, dtype=np.uint16)[None]
        assert self.deep(values, kind) == (5, 4095)

    def test_of_images_in_32_bits_too(self):
        assert self.deep(np.array([[-7, 70_000]], dtype=np.int32)) == (-7, 70_000)

    def test_of_several_channels_in_16_bits_the_upper_half_is_known(self):
        row = b"\0" + np.array([[0x0ABC, 0x0300, 0x0FFF]], dtype=">u2").tobytes()
        header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
            b"IDAT", zlib.compress(row)
        ) + chunk(b"IEND", b"")  # fmt: skip
        assert look(content).values == (0x0300, 0x0FFF)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_of_images_in_8_bits_nothing(self, kind):
        assert look(saved(kind)).values is None
