"""Image files of every kind become 8-bit RGB, or are refused with a reason."""

import random
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mimkit.data.pixels.decode import UnreadableError, decode, measure

RAMP = np.arange(0, 240, 8, dtype=np.uint8).reshape(5, 6)
COLORS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)


def encode(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def pixels(content):
    return np.asarray(decode(content))


def grey(values):
    return np.repeat(values[:, :, None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_come_back_as_they_were(kind):
    image = Image.fromarray(grey(RAMP) if kind == "GIF" else COLORS)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encode(image, kind, **options)), np.asarray(image))


def test_grey_is_repeated():
    assert np.array_equal(pixels(encode(Image.fromarray(RAMP))), grey(RAMP))


def test_sixteen_bit_grey_keeps_its_range():
    wide = RAMP.astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels(encode(Image.fromarray(wide), kind)), grey(RAMP))


def test_palettes_are_looked_up():
    image = Image.fromarray(COLORS).quantize(30)
    assert np.array_equal(pixels(encode(image)), np.asarray(image.convert("RGB")))


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(RAMP > 100)
    assert image.mode == "1"
    assert np.array_equal(pixels(encode(image)), grey((RAMP > 100).astype(np.uint8) * 255))


def test_cmyk_is_converted():
    image = Image.fromarray(COLORS).convert("CMYK")
    content = encode(image, "JPEG", quality=95)
    assert Image.open(BytesIO(content)).mode == "CMYK"
    assert np.abs(pixels(content).astype(int) - COLORS).mean() < 12


def test_what_is_transparent_is_white():
    alpha = np.full_like(RAMP, 255)
    alpha[0, 0] = 0
    with_color = Image.fromarray(np.dstack([COLORS, alpha]))
    with_grey = Image.fromarray(np.dstack([RAMP, alpha]))
    for image, opaque in ((with_color, COLORS), (with_grey, grey(RAMP))):
        expected = opaque.copy()
        expected[0, 0] = 255
        assert np.array_equal(pixels(encode(image)), expected)


def test_a_transparent_palette_entry_is_white():
    image = Image.fromarray(COLORS).quantize(30)
    entry = image.getpixel((0, 0))
    shown = pixels(encode(image, transparency=entry))
    assert (shown[0, 0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation):
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }
    content = encode(Image.fromarray(COLORS), exif=exif(orientation))
    expected = turns[orientation](COLORS)
    assert np.array_equal(pixels(content), expected)
    assert measure(content) == expected.shape[:2]


@pytest.mark.parametrize("kind", ["TIFF", "MPO"])
def test_of_several_frames_the_first_counts(kind):
    frames = [Image.fromarray(np.full((8, 8), k, np.uint8)) for k in (10, 200)]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert (pixels(content) == 10).all()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_measured_as_it_is_decoded(mode, orientation):
    image = Image.new(mode, (301, 77))
    content = encode(image, "JPEG", exif=exif(orientation))
    assert measure(content) == decode(content).size[::-1]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("shrink", "times"), [(1, 1), (2, 2), (3, 2), (7, 4), (100, 8)])
def test_jpeg_can_be_decoded_smaller(orientation, shrink, times):
    image = Image.new("RGB", (301, 77))
    content = encode(image, "JPEG", exif=exif(orientation))
    height, width = measure(content)
    assert decode(content, shrink).size == (-(-width // times), -(-height // times))
    assert decode(encode(image), shrink).size == (301, 77)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("function", [decode, measure])
def test_a_file_that_is_cut_off_is_refused(kind, function):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), kind)
    with pytest.raises(UnreadableError):
        function(content[: len(content) * 2 // 3])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no image, only words" * 9, "is no image of a known kind"),
        (encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "floating-point pixels"),
    ],
)
def test_what_is_no_usable_image_is_refused_with_a_reason(content, reason):
    for function in (decode, measure):
        with pytest.raises(UnreadableError, match=reason):
            function(content)


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match="could be decompression bomb"):
        decode(encode(Image.new("L", (100, 100))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damage_of_any_kind_gives_an_image_or_a_reason(kind):
    content = encode(Image.fromarray(COLORS.repeat(3, 0)), kind, exif=exif(6))
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            assert np.asarray(decode(bytes(damaged))).shape[2] == 3
        except UnreadableError:
            refused += 1
    assert refused
