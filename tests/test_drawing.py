"""Embedded data sets: same number same picture, balanced classes, any size."""

import itertools
import subprocess
import sys

import importlib_metadata
import numpy as np
import pytest
import torch

from mimkit.data.drawing import split
from mimkit.data.objects import OBJECTS
from mimkit.data.shapes import SHAPES

SETS = {"shapes": SHAPES, "objects": OBJECTS}


@pytest.fixture(params=SETS)
def drawing(request):
    return SETS[request.param]


def smallest(drawing, numbers, seed=0):
    return drawing.draw(numbers, image_size=drawing.min_image_size, seed=seed)


@pytest.mark.parametrize("extra", [0, 1, 16, 59])
def test_same_number_gives_same_picture_in_any_batch(drawing, extra):
    size = drawing.min_image_size + extra
    index = split("train", 100)
    images, labels = drawing.draw(index, image_size=size)
    some = np.array([97, 3, 50, 3])
    images_again, labels_again = drawing.draw(index[some], image_size=size)
    np.testing.assert_array_equal(images_again, images[some])
    np.testing.assert_array_equal(labels_again, labels[some])


@pytest.mark.parametrize("image_size", [24, 33, 64, 300])
def test_images_have_the_size_and_type_asked_for(drawing, image_size):
    images, labels = drawing.draw(split("test", 3), image_size=image_size)
    assert images.shape == (3, 3, image_size, image_size)
    assert images.dtype == np.uint8
    assert labels.shape == (3,)
    assert labels.dtype == np.int64


def test_other_size_shows_the_same_scene(drawing):
    small, labels = drawing.draw(split("train", 50), image_size=32)
    large, labels_large = drawing.draw(split("train", 50), image_size=128)
    shrunk = large.reshape(50, 3, 32, 4, 32, 4).mean(axis=(3, 5))
    np.testing.assert_array_equal(labels_large, labels)
    difference = shrunk - small  # of 255; each size has its own noise
    assert np.abs(difference).mean() < 10
    assert np.abs(difference.mean(axis=(1, 2, 3))).max() < 2


def test_no_pictures_gives_empty_arrays(drawing):
    images, labels = drawing.draw(split("train", 0), image_size=32)
    assert images.shape == (0, 3, 32, 32)
    assert labels.shape == (0,)


def test_too_small_a_size_is_refused(drawing):
    least = drawing.min_image_size
    with pytest.raises(ValueError, match=f"at least {least}, but is {least - 1}"):
        drawing.draw(split("train", 1), image_size=least - 1)


@pytest.mark.parametrize("name", ["train", "test"])
def test_classes_are_balanced(drawing, name):
    _, labels = smallest(drawing, split(name, 200))
    assert np.bincount(labels).tolist() == [20] * len(drawing.classes)


def test_every_tenth_picture_shows_all_classes(drawing):
    _, labels = smallest(drawing, split("train", 2000)[::10])
    assert np.unique(labels).size == len(drawing.classes)


def test_splits_and_seeds_show_different_pictures(drawing):
    train, _ = smallest(drawing, split("train", 20))
    test, _ = smallest(drawing, split("test", 20))
    other, _ = smallest(drawing, split("train", 20), seed=1)
    for left, right in itertools.combinations((train, test, other), 2):
        assert (left != right).any(axis=(1, 2, 3)).all()
    assert np.intersect1d(split("train", 10_000), split("test", 10_000)).size == 0


def test_pixels_use_the_range_without_saturating(drawing):
    images, _ = drawing.draw(split("train", 500), image_size=32)
    assert 115 < images.mean() < 140
    assert images.std() > 40
    assert np.isin(images, (0, 255)).mean() < 0.05


@pytest.mark.parametrize("name", SETS)
def test_what_is_registered_are_the_pictures_own_mean_and_deviation(name):
    known = importlib_metadata.entry_points(group="mimkit.datasets")[name].load()
    images, _ = SETS[name].draw(split("train", 2000), image_size=32)
    pixels = torch.from_numpy(images).double() / 255
    torch.testing.assert_close(
        pixels.mean(dim=(0, 2, 3)).tolist(), list(known.mean), atol=0.01, rtol=0
    )
    torch.testing.assert_close(
        pixels.std(dim=(0, 2, 3)).tolist(), list(known.std), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("name", SETS)
def test_drawing_needs_no_torch(name):
    code = f"import sys, mimkit.data.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
