"""Shared augmentation: what is drawn, and how it is rendered from pixels and from files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from mimkit.data.pixels.augment import Augment, Draws, draw
from mimkit.data.pixels.raster import Raster
from mimkit.data.pixels.views import finish, render
from mimkit.data.source import Source
from mimkit.parts.records import View

PLAIN = View("image", (8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def source_of(images, resident):
    """A source of (3, H, W) uint8 tensors, held as pixels or as images that a reader gives."""

    def read(index, shrink=1):
        return Raster.of(images[index].permute(1, 2, 0).numpy())

    return Source(
        name="made",
        split="train",
        origin="here",
        classes=(),
        labels=None,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        fingerprint="",
        sizes=torch.tensor([image.shape[1:] for image in images], dtype=torch.int32),
        pixels=torch.stack(images) if resident else None,
        reader=None if resident else read,
    )


def random_images(n, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 3, height, width)
    return list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def smooth_images(n, height, width):
    """Images without overshoot, whose resampling does not depend on the order of the axes."""
    x = torch.linspace(40, 180, width)[None, None, :]
    y = torch.linspace(0, 30, height)[None, :, None]
    tint = torch.arange(3)[:, None, None]
    return [(x + y + 5 * tint + k).to(torch.uint8) for k in range(n)]


def drawn(augment, sizes, n=None, seed=0, epoch=0):
    sizes = np.array(sizes) if n is None else np.tile(sizes, (n, 1))
    index = np.arange(len(sizes))
    return draw(augment, sizes, seed, np.full(len(sizes), epoch), index)


class TestDraws:
    @pytest.mark.parametrize("crop", ["none", "pad", "resized"])
    def test_they_depend_on_seed_epoch_and_index_alone(self, crop):
        augment = Augment(crop=crop, color_jitter=0.4)
        sizes = np.tile([20, 30], (6, 1))
        index, epoch = np.array([5, 3, 9, 0, 3, 7]), np.array([0, 0, 1, 2, 1, 0])
        together = draw(augment, sizes, 7, epoch, index)
        for k in range(6):
            alone = draw(augment, sizes[:1], 7, epoch[k : k + 1], index[k : k + 1])
            assert torch.equal(alone.box[0], together.box[k])
            assert torch.equal(alone.flip[0], together.flip[k])
            assert torch.equal(alone.color[0], together.color[k])

    @pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
    def test_another_seed_or_epoch_draws_anew(self, other):
        augment = Augment(color_jitter=0.4)
        one, two = drawn(augment, [50, 50], n=20), drawn(augment, [50, 50], n=20, **other)
        assert (one.box != two.box).any(1).float().mean() > 0.8
        assert not torch.equal(one.flip, two.flip)
        assert (one.color != two.color).all()

    def test_a_padded_crop_reaches_every_offset_about_equally_often(self):
        draws = drawn(Augment(crop="pad", padding=2), [32, 32], n=5000)
        assert (draws.box[:, 2:] == 32).all()
        for side in (0, 1):
            offsets, counts = draws.box[:, side].unique(return_counts=True)
            assert offsets.tolist() == [-2, -1, 0, 1, 2]
            assert counts.min() > 850

    def test_half_of_the_images_are_mirrored_unless_flip_is_off(self):
        assert 0.47 < drawn(Augment(), [32, 32], n=4000).flip.float().mean() < 0.53
        assert not drawn(Augment(flip=False), [32, 32], n=100).flip.any()

    def test_a_resized_crop_has_the_distribution_of_torchvision(self):
        height, width, n = 60, 90, 3000
        ours = drawn(Augment(crop_scale=(0.1, 0.9)), [height, width], n=n).box.double()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            image = torch.zeros(3, height, width)
            theirs = torch.tensor(
                [
                    RandomResizedCrop.get_params(image, scale=[0.1, 0.9], ratio=[3 / 4, 4 / 3])
                    for _ in range(n)
                ]
            ).double()
        assert torch.allclose(ours.mean(0), theirs.mean(0), rtol=0.06)
        assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.06)
        assert (ours[:, 0] + ours[:, 2] <= height).all()
        assert (ours[:, 1] + ours[:, 3] <= width).all()

    def test_where_no_try_fits_the_largest_centred_box_is_taken(self):
        draws = drawn(Augment(crop_scale=(1.0, 1.0)), [[10, 300], [300, 10]])
        assert draws.box.tolist() == [[0, 143, 10, 13], [143, 0, 13, 10]]

    @pytest.mark.parametrize("size", [[1, 1], [1, 7], [2, 1]])
    def test_the_smallest_images_still_give_a_box_inside(self, size):
        box = drawn(Augment(crop_scale=(0.01, 1.0)), size, n=200).box
        assert (box[:, 2:] >= 1).all()
        assert (box[:, :2] >= 0).all()
        assert (box[:, :2] + box[:, 2:] <= torch.tensor(size)).all()

    def test_jitter_factors_span_their_range(self):
        color = drawn(Augment(color_jitter=0.4), [8, 8], n=2000).color
        assert color.min() >= 0.6
        assert color.max() <= 1.4
        assert color.max() - color.min() > 0.78
        strong = drawn(Augment(color_jitter=1.5), [8, 8], n=2000).color
        assert 0 <= strong.min() < 0.01
        assert 2.45 < strong.max() <= 2.5


class TestRendering:
    def test_pixels_are_scaled_and_normalised(self):
        images = random_images(2, 8, 8)
        view = View("image", (8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
        out = render(source_of(images, True), torch.tensor([1, 0]), view, None, Augment())
        mean, std = torch.tensor(view.mean), torch.tensor(view.std)
        expected = (images[1] / 255 - mean[:, None, None]) / std[:, None, None]
        assert out.dtype == torch.float32
        assert torch.allclose(out[0], expected, atol=1e-6)

    @pytest.mark.parametrize("resident", [True, False])
    @pytest.mark.parametrize("mode", ["zero", "reflect"])
    def test_a_padded_crop_is_the_shifted_image(self, resident, mode):
        image = random_images(1, 8, 8)[0]
        augment = Augment(crop="pad", padding=3, padding_mode=mode, flip=False)
        draws = Draws(torch.tensor([[-2.0, 3, 8, 8]]), torch.tensor([False]))
        out = render(source_of([image], resident), torch.tensor([0]), PLAIN, draws, augment)
        padded = np.pad(
            image.numpy(),
            ((0, 0), (3, 3), (3, 3)),
            "constant" if mode == "zero" else "reflect",
        )
        assert torch.allclose(out[0] * 255, torch.tensor(padded[:, 1:9, 6:14]).float(), atol=1e-4)

    def test_zero_padding_is_black_before_normalisation(self):
        view = View("image", (4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
        augment = Augment(crop="pad", flip=False)
        draws = Draws(torch.tensor([[-4.0, 0, 4, 4]]), torch.tensor([False]))
        white = torch.full((3, 4, 4), 255, dtype=torch.uint8)
        out = render(source_of([white], True), torch.tensor([0]), view, draws, augment)
        assert torch.allclose(out, torch.tensor(-2.0))

    @pytest.mark.parametrize("augment", [Augment(), Augment(crop="pad"), Augment(crop="none")])
    @pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize("size", [(12, 12), (5, 9)])
    def test_pixels_and_files_give_the_same_picture(self, augment, kernel, size):
        images = smooth_images(12, 14, 14)
        view = replace(PLAIN, image_size=size, interpolation=kernel)
        index = torch.arange(12)
        draws = drawn(augment, [14, 14], n=12)
        here, there = (
            render(source_of(images, resident), index, view, draws, augment)
            for resident in (True, False)
        )
        # Zero padding is a sharp edge, where the order of Pillow's two passes shows a little.
        limit = 4 if augment.crop == "pad" else 1
        assert (here - there).abs().max() * 255 <= limit + 1e-3

    def test_whole_images_of_another_aspect_are_cut_to_the_centre(self):
        images = smooth_images(1, 20, 40)
        view = replace(PLAIN, image_size=(10, 10))
        out = render(source_of(images, False), torch.tensor([0]), view, None, Augment())
        whole = Image.fromarray(images[0].permute(1, 2, 0).numpy())
        resized = np.asarray(whole.resize((20, 10), Image.Resampling.BICUBIC))[:, 5:15]
        assert (out[0].permute(1, 2, 0) * 255 - torch.tensor(resized)).abs().max() <= 1 + 1e-3

    def test_whole_images_are_shown_whatever_the_augmentation_says(self):
        images = random_images(3, 8, 8)
        strong = Augment(crop_scale=(0.1, 0.2), color_jitter=1.0)
        out = render(source_of(images, True), torch.arange(3), PLAIN, None, strong)
        assert torch.allclose(out * 255, torch.stack(images).float(), atol=1e-4)
        assert torch.equal(source_of(images, True).view(torch.arange(3), PLAIN), out)

    def test_all_views_of_an_image_show_the_same_box(self):
        # Brightness is position: where views agree in brightness they show the same place.
        images = smooth_images(30, 48, 48)
        augment = Augment(crop_scale=(0.1, 0.5))
        draws = drawn(augment, [48, 48], n=30)
        index = torch.arange(30)
        large, small = (
            render(source_of(images, True), index, replace(PLAIN, image_size=s), draws, augment)
            for s in ((16, 16), (8, 8))
        )
        pooled = torch.nn.functional.avg_pool2d(large, 2)
        assert (pooled - small).abs().max() * 255 < 2.5
        assert len(draws.box.unique(dim=0)) > 25

    @pytest.mark.parametrize("resident", [True, False])
    def test_an_image_does_not_depend_on_its_batch(self, resident):
        images = random_images(6, 9, 9)
        augment = Augment(color_jitter=0.4)
        source = source_of(images, resident)
        sizes = np.tile([9, 9], (6, 1))
        index = np.array([4, 2, 5, 0, 1, 3])

        def shown(rows):
            draws = draw(augment, sizes[rows], 3, np.zeros(len(rows), int), index[rows])
            return render(source, torch.from_numpy(index[rows]), PLAIN, draws, augment)

        together = shown(np.arange(6))
        for k in range(6):
            assert torch.equal(shown(np.array([k]))[0], together[k])


class TestJitter:
    def test_it_is_torchvisions_in_the_order_brightness_contrast_saturation(self):
        images = torch.stack(random_images(5, 6, 7))
        color = torch.tensor(
            [[1, 1, 1], [0.6, 1, 1], [1, 1.4, 1], [1, 1, 0], [1.3, 0.7, 1.4]], dtype=torch.float32
        )
        out = finish(images, replace(PLAIN, image_size=(6, 7)), color)
        for k, (brightness, contrast, saturation) in enumerate(color.tolist()):
            expected = images[k] / 255
            expected = tv.adjust_brightness(expected, brightness)
            expected = tv.adjust_contrast(expected, contrast)
            expected = tv.adjust_saturation(expected, saturation)
            assert torch.allclose(out[k], expected, atol=2e-4)

    def test_factors_of_one_change_nothing(self):
        images = torch.stack(random_images(2, 4, 4))
        assert torch.allclose(
            finish(images, PLAIN, torch.ones(2, 3)), finish(images, PLAIN, None), atol=1e-6
        )
