"""Images that are not 8-bit RGB: read as they are stored, measured, refused where they are odd."""

import contextlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mimkit.data.cache import split_folder
from mimkit.data.opening import open_source, open_sources
from mimkit.data.pixels.augment import Augment, Draws
from mimkit.data.pixels.decode import decode
from mimkit.data.pixels.form import Form
from mimkit.data.pixels.unreadable import MisfitError, UnreadableError
from mimkit.data.pixels.views import render
from mimkit.errors import DataError
from mimkit.parts.records import View
from mimkit.recipe.sections import DataSection


def section(root, **values):
    return DataSection(name=str(root), image_size=8, patch_size=4, **values)


def npy(array):
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(*pages):
    file = BytesIO()
    first, *rest = map(Image.fromarray, pages)
    first.save(file, "TIFF", save_all=True, append_images=rest)
    return file.getvalue()


def stored(array, channels, **values):
    return np.asarray(decode(array, form=Form(channels, **values)))


def stack(seed, channels, size=(8, 8), top=4096, kind=np.uint16):
    return np.random.default_rng(seed).integers(0, top, (*size, channels)).astype(kind)


def folder(root, arrays, ending="npy"):
    root.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        if ending == "npy":
            np.save(root / f"{number:02d}.npy", array)
        else:
            Image.fromarray(array).save(root / f"{number:02d}.{ending}")
    return root


def both(root, arrays, test=None, ending="npy"):
    """A data set whose training split are these arrays, in their order."""
    folder(root / "train", arrays, ending)
    folder(root / "test", arrays[:3] if test is None else test, ending)
    return root


def in_order(source, arrays):
    """The arrays that the images of a split were, in its order."""
    listed = (split_folder(source.key) / "names.bin").read_bytes().decode().split("\0")
    return [arrays[int(Path(name).stem)] for name in listed]


class TestDecoding:
    @given(
        hnp.arrays(
            st.sampled_from(["u2", "<i2", ">u4", "f2", "f4", "<f8"]),
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
            elements=st.integers(0, 2000),
        ),
        st.sampled_from([2, 4, 6, 13]),
        st.booleans(),
    )
    def test_an_array_keeps_its_values_wherever_its_channels_are(self, plane, channels, last):
        planes = np.stack([plane + plane.dtype.type(k) for k in range(channels)], 2 if last else 0)
        if plane.shape[1] == channels and not last:
            return  # the last axis is taken where both would do
        expected = planes if last else planes.transpose(1, 2, 0)
        assert np.array_equal(stored(npy(planes), channels), expected.astype(np.float32))

    def test_grey_of_more_than_8_bits_is_not_rounded(self):
        grey = stack(0, 1)[..., 0]
        for content in (npy(grey), tiff(grey)):
            assert np.array_equal(stored(content, 1)[..., 0], grey)
            assert np.array_equal(stored(content, 3), np.repeat(grey[..., None], 3, 2))

    def test_floats_are_kept(self):
        grey = np.linspace(-3, 1e-4, 12, dtype=np.float32).reshape(3, 4)
        assert np.array_equal(stored(tiff(grey), 1)[..., 0], grey)

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize("channels", [2, 3, 6])
    def test_pages_of_a_tiff_are_channels_where_there_are_as_many(self, kind, channels):
        planes = stack(1, channels, top=200, kind=kind)
        found = stored(tiff(*np.moveaxis(planes, 2, 0)), channels)
        assert found.dtype == (np.uint8 if kind == np.uint8 else np.float32)
        assert np.array_equal(found, planes)

    @pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4"])
    @pytest.mark.parametrize("layout", [{"planarconfig": "contig"}, {"planarconfig": "separate"}])
    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_a_tiff_of_several_channels_is_what_tifffile_wrote(self, kind, layout, compression):
        tifffile = pytest.importorskip("tifffile")
        planes = stack(2, 5, (7, 9), 200, np.dtype(kind))
        written = planes if layout["planarconfig"] == "contig" else planes.transpose(2, 0, 1)
        file = BytesIO()
        tifffile.imwrite(file, written, photometric="minisblack", compression=compression, **layout)
        found = stored(file.getvalue(), 5)
        assert found.dtype == (np.uint8 if kind == "u1" else np.float32)
        assert np.array_equal(found, planes)

    def test_sixteen_bit_rgb_tiff_keeps_its_lower_bits(self):
        tifffile = pytest.importorskip("tifffile")
        planes, file = stack(3, 3), BytesIO()
        tifffile.imwrite(file, planes, photometric="rgb")
        assert np.array_equal(stored(file.getvalue(), 3), planes)

    def test_without_tifffile_one_message_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
        file = BytesIO()
        Image.fromarray(stack(0, 3, kind=np.uint8)).save(file, "TIFF")
        broken = file.getvalue().replace(b"\x08\x00\x08\x00\x08\x00", b"\x08\x00\x10\x00\x08\x00")
        with pytest.raises(UnreadableError, match=r"pip install 'mimkit\[tiff\]'"):
            decode(broken)

    def test_any_8_bit_image_becomes_grey_as_pillow_has_it(self):
        colours = Image.fromarray(stack(4, 3, top=256, kind=np.uint8))
        for image in (colours, colours.convert("L"), colours.quantize(9), colours.convert("CMYK")):
            kind = "TIFF" if image.mode == "CMYK" else "PNG"
            file = BytesIO()
            image.save(file, kind)
            expected = np.asarray(image.convert("RGB").convert("L"))
            assert np.array_equal(stored(file.getvalue(), 1)[..., 0], expected)

    def test_four_bands_are_taken_as_they_are_stored(self):
        bands = stack(5, 4, top=256, kind=np.uint8)
        file = BytesIO()
        Image.fromarray(bands, "RGBA").save(file, "PNG")
        assert np.array_equal(stored(file.getvalue(), 4), bands)

    @pytest.mark.parametrize(
        ("content", "channels", "reason"),
        [
            (npy(np.zeros((8, 8, 5), "u2")), 6, r"shape \(8, 8, 5\), but data.channels is 6"),
            (tiff(*np.zeros((5, 8, 8), "u2")), 6, "has 1 channels, but data.channels is 6"),
            (tiff(np.zeros((8, 8, 3), "u1")), 2, r"3 channels \(RGB\), but data.channels is 2"),
        ],
    )
    def test_another_number_of_channels_is_told(self, content, channels, reason):
        with pytest.raises(MisfitError, match=reason):
            stored(content, channels)

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.array([[1.0, np.nan], [np.inf, 2]]), "2 values that are no finite numbers"),
            (np.array([[1e300, 0]]), "1 values that are no finite numbers"),
            (np.zeros((2, 2), complex), "holds complex128"),
            (np.array([["a", "b"]]), "and not numbers"),
            (np.zeros((0, 4)), "no pixels"),
        ],
    )
    def test_what_are_no_numbers_is_told(self, array, reason):
        with pytest.raises(UnreadableError, match=reason):
            stored(npy(array), 1)

    def test_pickled_python_is_never_opened(self):
        file = BytesIO()
        np.save(file, np.array([[{}]]), allow_pickle=True)
        with pytest.raises(UnreadableError, match="pickled"):
            stored(file.getvalue(), 1)

    @given(st.data())
    def test_damage_gives_an_image_or_a_reason(self, data):
        content = bytearray(npy(stack(6, 6, (5, 6))))
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(1, len(content)))]
        with contextlib.suppress(UnreadableError):  # whatever else is raised ends the survey
            assert stored(bytes(content), 6).shape[2] == 6


class TestRange:
    def test_twelve_bits_keep_all_their_levels(self, tmp_path):
        ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        source = open_source(section(both(tmp_path / "set", [ramp] * 12, "png")), "train")
        assert len(torch.unique(source.pixels)) == 4096
        assert (source.pixels.min(), source.pixels.max()) == (0, 1)
        assert "stored values 0 to 4,095 become 0 to 1 (measured), in float32" in source.describe()

    def test_mean_and_deviation_are_those_of_all_training_pixels(self, tmp_path):
        arrays = [stack(number, 6) * (1 + number % 3) for number in range(24)]
        train, test = open_sources(section(both(tmp_path / "set", arrays), channels=6))
        used = np.stack(in_order(train, arrays))
        low, high = used.min(), used.max()
        pixels = (used.astype(np.float64) - low) / (high - low)
        assert train.scale == test.scale == (low, high)
        assert np.allclose(train.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
        assert np.allclose(train.std, pixels.std((0, 1, 2)), rtol=1e-9)
        assert (test.mean, test.std) == (train.mean, train.std)
        assert torch.allclose(train.pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2).float())

    def test_a_given_range_cuts_off_what_is_outside(self, tmp_path):
        arrays = [stack(number, 1)[..., 0] for number in range(12)]
        root = both(tmp_path / "set", arrays)
        source = open_source(section(root, channels=1, range=(1000, 2000)), "train")
        pixels = (np.stack(in_order(source, arrays)).astype(float).clip(1000, 2000) - 1000) / 1000
        assert np.allclose(source.pixels[:, 0], pixels, atol=1e-6)
        assert np.allclose(source.std, pixels.std(), rtol=1e-9)
        assert "1,000 to 2,000 become 0 to 1 (as data.range says)" in source.note
        assert "values go from" in source.note

    def test_a_range_makes_8_bits_float(self, tmp_path):
        root = both(tmp_path / "set", [stack(k, 3, top=100, kind=np.uint8) for k in range(12)])
        plain, ranged = (
            open_source(section(root, **more), "train") for more in ({}, {"range": (0, 100)})
        )
        assert torch.allclose(ranged.pixels, plain.pixels / 100)
        assert plain.fingerprint != ranged.fingerprint

    def test_types_have_their_own_range_where_that_is_asked_for(self, tmp_path):
        wide = [stack(number, 1, top=65536)[..., 0] for number in range(12)]
        root = both(tmp_path / "set", wide, "png")
        folder(root / "train" / "more", [(each // 257).astype(np.uint8) for each in wide], "png")
        source = open_source(section(root, range="type"), "train")
        assert source.pixels.dtype == torch.uint8
        assert source.scale is None

    def test_one_channel_that_never_changes_is_zero(self, tmp_path):
        arrays = [np.concatenate([stack(k, 1), np.full((8, 8, 1), 7, "u2")], 2) for k in range(12)]
        source = open_source(section(both(tmp_path / "set", arrays), channels=2), "train")
        view = View("image", (8, 8), source.mean, source.std)
        assert source.std[1] == 1
        assert source.view(torch.arange(3), view)[:, 1].abs().max() < 1e-6

    def test_a_sample_measures_what_is_not_surveyed(self, tmp_path):
        root = both(tmp_path / "set", [stack(number, 6, (9, 10)) for number in range(30)])
        whole = open_source(section(root, channels=6), "train")
        met = open_source(section(root, channels=6, survey=False), "train")
        assert (met.mean, met.std, met.scale) == (whole.mean, whole.std, whole.scale)
        view = View("image", (8, 8), met.mean, met.std)
        index = torch.tensor([3, 0])
        assert torch.allclose(met.view(index, view), whole.view(index, view), atol=1e-5)
        again = open_source(section(root, channels=6, survey=False), "train")
        assert (again.mean, again.fingerprint) == (met.mean, met.fingerprint)


class TestRefusals:
    @pytest.mark.parametrize("survey", [True, False])
    def test_one_image_of_other_channels_is_named_with_the_key(self, tmp_path, survey):
        arrays = [stack(number, 6) for number in range(12)]
        arrays[7] = stack(7, 5)
        root = both(tmp_path / "set", arrays)
        with pytest.raises(DataError, match=r"07\.npy: has the shape .* data.channels is 6"):
            open_source(section(root, channels=6, survey=survey), "train").extent(torch.arange(12))

    def test_the_wrong_number_is_told_at_the_first_image(self, tmp_path):
        root = both(tmp_path / "set", [stack(number, 6) for number in range(12)])
        with pytest.raises(DataError, match=r"\d\d\.npy: .*\(8, 8, 6\), but data.channels is 3"):
            open_source(section(root), "train")

    def test_mixed_depths_are_refused_with_the_key(self, tmp_path):
        arrays = [stack(number, 1)[..., 0] for number in range(12)]
        arrays[5] = arrays[5].astype(np.uint8)
        root = both(tmp_path / "set", arrays, ending="png")
        with pytest.raises(DataError, match=r"05\.png: is stored in 8 bits, .*data.range") as found:
            open_source(section(root), "train")
        assert "1 of 12 images" in str(found.value)
        assert open_source(section(root, range="type"), "train").scale is None
        assert open_source(section(root, range=(0, 4095)), "train").scale == (0, 4095)

    def test_splits_of_two_depths_are_refused(self, tmp_path):
        wide = [stack(number, 1)[..., 0] for number in range(12)]
        root = both(tmp_path / "set", wide, [each.astype(np.uint8) for each in wide], "png")
        with pytest.raises(DataError, match=r"both splits must be stored in 8 bits.*data.range"):
            open_sources(section(root))

    def test_an_image_with_nan_is_listed_and_the_others_are_used(self, tmp_path):
        arrays = [stack(number, 2).astype(np.float32) for number in range(12)]
        arrays[4][0, 0, 0] = np.nan
        source = open_source(section(both(tmp_path / "set", arrays), channels=2), "train")
        assert len(source) == 11
        assert "04.npy holds 1 values that are no finite numbers" in source.describe()

    def test_arrays_beside_images_are_none(self, tmp_path):
        root = both(
            tmp_path / "set", [stack(k, 3, top=256, kind=np.uint8) for k in range(4)], ending="png"
        )
        folder(root / "train", [stack(k, 3) for k in range(4)])
        source = open_source(section(root), "train")
        assert len(source) == 4
        assert all("an image only where no other images lie" in s.reason for s in source.skipped)

    def test_drawn_pictures_are_grey_or_rgb(self):
        with pytest.raises(DataError, match=r"data.channels: must be 3, or 1 for grey"):
            open_source(
                DataSection(name="shapes", image_size=16, patch_size=4, channels=6), "train"
            )

    def test_mean_and_deviation_go_with_the_channels(self):
        with pytest.raises(ValueError, match="a number for each of the 6 channels"):
            section("x", channels=6, mean=(0.5, 0.5, 0.5))


class TestRendering:
    @pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    @pytest.mark.parametrize("crop", ["none", "pad", "resized"])
    def test_files_and_pixels_give_the_same_picture(self, tmp_path, kernel, kind, crop):
        arrays = [stack(number, 6, (20, 26), 250, kind) for number in range(5)]
        root = both(tmp_path / "set", arrays)
        resident = open_source(section(root, channels=6), "train")
        files = open_source(section(root, channels=6, survey=False), "train")
        view = View("image", (12, 15), resident.mean, resident.std, kernel)
        augment = Augment(crop=crop, color_jitter=0.4)
        draws = Draws(
            torch.tensor([[2.0, 3, 16, 20], [0, 0, 20, 26]]),
            torch.tensor([True, False]),
            torch.tensor([[1.2, 0.8, 0.5], [0.7, 1.3, 1.0]]),
        )
        index = torch.tensor([1, 4])
        one, other = (render(each, index, view, draws, augment) for each in (resident, files))
        assert one.shape == (2, 6, 12, 15)
        step = 1.01 / 255 / min(resident.std) if kind == np.uint8 else 1e-3
        assert (one - other).abs().max() <= step

    def test_every_channel_is_resized_as_pillow_does_a_plane_of_floats(self, tmp_path):
        arrays = [stack(number, 2, (20, 26)).astype(np.float32) for number in range(3)]
        source = open_source(
            section(both(tmp_path / "set", arrays), channels=2, range=(-5000, 10_000)), "train"
        )
        view = View("image", (9, 13), (0.0, 0.0), (1.0, 1.0), "bicubic")
        found = source.view(torch.tensor([1]), view)[0]
        array = in_order(source, arrays)[1]
        for channel in range(2):
            plane = Image.fromarray(np.ascontiguousarray(array[..., channel]))
            box = (0, 1, 26, 19)  # the largest of the view's aspect
            expected = np.asarray(plane.resize((13, 9), Image.Resampling.BICUBIC, box))
            assert np.allclose(found[channel] * 15_000 - 5000, expected, atol=0.05)
