"""RandAugment of training images."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from mimkit import RecipeError, View
from mimkit.data.opening import open_source
from mimkit.data.pixels.augment import Augment
from mimkit.evaluate.images import TrainingImages
from mimkit.evaluate.randaugment import (
    RandAugment,
    global_random_state_kept,
    seed_global_random,
)
from mimkit.recipe.sections import DataSection

CONFIG = "rand-m9-mstd0.5-inc1"
VIEW = View("image", (16, 16))
INDEX = np.arange(8)
EPOCH = np.zeros(8, dtype=np.int64)


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture
def training_images():
    data = DataSection(name="shapes", image_size=(16, 16), patch_size=4, num_images=24)
    return TrainingImages(
        open_source(data, "train"),
        index=torch.arange(24),
        views=(VIEW,),
        batch_size=8,
        variation=Augment(crop="pad"),
        seed=5,
        rand_augment=RandAugment(CONFIG),
    )


def test_an_image_depends_on_seed_pass_and_number_alone(pixels):
    augment = RandAugment(CONFIG)
    after = augment(pixels, VIEW, 0, EPOCH, INDEX)
    assert after.shape == pixels.shape
    assert after.dtype == torch.uint8
    reverse = np.arange(7, -1, -1)
    again = augment(pixels[reverse.tolist()], VIEW, 0, EPOCH, INDEX[reverse])
    assert torch.equal(again.flip(0), after)
    assert torch.equal(augment(pixels[3:4], VIEW, 0, EPOCH[3:4], INDEX[3:4])[0], after[3])
    for other in (
        augment(pixels, VIEW, 1, EPOCH, INDEX),
        augment(pixels, VIEW, 0, EPOCH + 1, INDEX),
        augment(pixels, VIEW, 0, EPOCH, INDEX + 8),
    ):
        assert not torch.equal(other, after)


def test_the_global_generators_stay_as_they_were(pixels):
    random.seed(1)
    np.random.seed(1)
    python, legacy = random.getstate(), np.random.get_state()
    first = RandAugment(CONFIG)(pixels, VIEW, 0, EPOCH, INDEX)
    assert random.getstate() == python
    assert all(np.array_equal(*each) for each in zip(np.random.get_state(), legacy, strict=True))
    random.seed(2)
    np.random.seed(2)
    assert torch.equal(RandAugment(CONFIG)(pixels, VIEW, 0, EPOCH, INDEX), first)


def test_the_global_generators_stay_as_they_were_after_an_error(pixels, monkeypatch):
    monkeypatch.setattr("mimkit.evaluate.randaugment.Image.fromarray", lambda _: 1 / 0)
    python = random.getstate()
    with pytest.raises(ZeroDivisionError):
        RandAugment(CONFIG)(pixels, VIEW, 0, EPOCH, INDEX)
    assert random.getstate() == python


def test_the_operations_are_those_of_timm(pixels, monkeypatch):
    seeds = []

    def seed(number):
        seeds.append(number)
        seed_global_random(number)

    monkeypatch.setattr("mimkit.evaluate.randaugment.seed_global_random", seed)
    view = View("image", (16, 16), mean=(0.2, 0.4, 1.0))
    after = RandAugment(CONFIG)(pixels, view, 0, EPOCH, INDEX)
    options = {"img_mean": (51, 102, 255), "interpolation": Image.Resampling.BICUBIC}
    transform = rand_augment_transform(CONFIG, options)
    assert len(set(seeds)) == 8
    for number, image, expected in zip(seeds, pixels, after, strict=True):
        with global_random_state_kept():
            seed_global_random(number)
            ours = np.asarray(transform(Image.fromarray(image.permute(1, 2, 0).numpy())))
        assert np.array_equal(ours.transpose(2, 0, 1), expected.numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_what_moves_in_has_the_mean_colour_under_every_kernel(interpolation):
    view = View("image", (16, 16), mean=(1.0, 0.0, 0.0), interpolation=interpolation)
    count = 100
    grey = torch.full((count, 3, 16, 16), 90, dtype=torch.uint8)
    index, epoch = np.arange(count), np.zeros(count, dtype=np.int64)
    after = RandAugment("rand-m10-n1-p1")(grey, view, 0, epoch, index)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None]
    moved = (after == red).all(1).flatten(1).any(1)
    assert 10 < moved.sum() < 60  # a third of the operations moves pixels


@pytest.mark.parametrize("config", ["rand-m10-inc1", "rand-m0"])
def test_an_image_without_any_bit_is_black(config):
    """Both magnitudes let posterising keep nothing."""
    white = torch.full((60, 3, 16, 16), 250, dtype=torch.uint8)
    index, epoch = np.arange(60), np.zeros(60, dtype=np.int64)
    after = RandAugment(config + "-p1")(white, VIEW, 0, epoch, index)
    assert (after == 0).flatten(1).all(1).any()


@pytest.mark.parametrize(
    "config",
    [
        "rand",
        CONFIG,
        "rand-m9-n3-mstd0.5",
        "rand-mstd1-tweights",
        "rand-m15-mmax20-p0.3-inc0",
        "rand-m9-mstd101-t3a",
        "rand-t3aw",
    ],
)
def test_what_timm_understands_is_taken(config, pixels):
    assert RandAugment(config)(pixels, VIEW, 0, EPOCH, INDEX).shape == pixels.shape


@pytest.mark.parametrize(
    "config",
    ["", "m9", "rand-m9-msd0.5", "rand-increasing", "rand-m9,n2", "augmix-m3", "rand-inc2"],
)
def test_a_slip_of_the_pen_is_refused(config):
    with pytest.raises(RecipeError, match=r"rand_augment: must be written as in timm"):
        RandAugment(config)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
def test_loader_processes_change_nothing(training_images):
    def batches(workers):
        device = torch.device("cpu")
        stream = training_images.stream(7, workers=workers, device=device)
        return [views["image"] for _, views in stream]

    for alone, together in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone, together)


def test_images_are_augmented_after_they_are_cut(training_images):
    """The fourth batch is the first of the second pass."""
    index, pixels, _ = training_images[3]
    _, epoch, _ = training_images.choose(3)
    assert (epoch == 1).all()
    plain = TrainingImages(
        training_images.source,
        training_images.index,
        training_images.views,
        training_images.batch_size,
        training_images.variation,
        training_images.seed,
    )
    cut = plain[3][1]["image"]
    expected = RandAugment(CONFIG)(cut, VIEW, 5, epoch, index.numpy())
    assert torch.equal(pixels["image"], expected)
    assert not torch.equal(expected, cut)
