"""Crops and resampling of many images at once, against numpy and Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimkit.data.pixels.resample import crop, reflect, resample

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
NUMPY_MODES = {"zero": "constant", "reflect": "reflect"}


def random_images(n, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def to_pillow(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def pillow_resize(image, box, size, kernel, flip):
    """Resizes columns, then rows: in one call, the order depends on Pillow's version."""
    top, left, box_height, box_width = box
    right, bottom = min(left + box_width, image.width), min(top + box_height, image.height)
    height, width = size
    image = image.resize((width, image.height), PILLOW[kernel], (left, 0, right, image.height))
    image = image.resize((width, height), PILLOW[kernel], (0, top, width, bottom))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@st.composite
def boxes(draw):
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    ends = []
    for length in (height, width):
        extent = draw(st.floats(0.25, length, width=32))
        start = draw(st.floats(0, 1)) * (length - extent)
        ends.append((start, extent))
    (top, box_height), (left, box_width) = ends
    size = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    return height, width, (top, left, box_height, box_width), size


@settings(max_examples=200, derandomize=True)
@given(
    case=boxes(),
    kernel=st.sampled_from(sorted(PILLOW)),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_box_is_resized_as_pillow_does_it(case, kernel, flip, seed):
    height, width, (top, left, box_height, box_width), size = case
    pixels = random_images(1, height, width, seed)
    box = torch.tensor([[top, left, box_height, box_width]])
    ours = resample(pixels, box, torch.tensor([flip]), size, kernel)[0]
    theirs = pillow_resize(
        to_pillow(pixels[0]), (top, left, box_height, box_width), size, kernel, flip
    )
    difference = (ours.int() - theirs.int()).abs()
    # Each of two passes rounds, which may fall to the other side: often where few pixels are
    # enlarged to many that lie half-way between two values.
    assert difference.max() <= 2
    assert difference.float().mean() <= 0.25


@pytest.mark.parametrize("kernel", sorted(PILLOW))
def test_the_whole_image_at_its_own_size_stays_as_it_is(kernel):
    pixels = random_images(4, 9, 7)
    box = torch.tensor([[0.0, 0, 9, 7]]).expand(4, -1)
    assert torch.equal(resample(pixels, box, torch.zeros(4).bool(), (9, 7), kernel), pixels)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("kernel", sorted(PILLOW))
def test_a_box_that_sticks_out_shows_padding(mode, kernel):
    pixels = random_images(5, 8, 6)
    corner = torch.tensor([[-3.0, -3], [3, 3], [0, -2], [-1, 2], [0.25, -0.5]])
    box = torch.cat([corner, torch.tensor([[8.0, 6]]).expand(5, -1)], 1)
    flip = torch.tensor([False, True, False, True, False])
    options = {"padding": 3, "padding_mode": mode}
    ours = resample(pixels, box, flip, (5, 10), kernel, **options)
    for k in range(5):
        around = ((3, 3), (3, 3), (0, 0))
        whole = np.pad(pixels[k].permute(1, 2, 0).numpy(), around, NUMPY_MODES[mode])
        top, left = (box[k, :2] + 3).tolist()
        theirs = pillow_resize(Image.fromarray(whole), (top, left, 8, 6), (5, 10), kernel, flip[k])
        assert (ours[k].int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_whole_pixel_crops_equal_slices_of_the_padded_image(mode):
    pixels = random_images(49, 6, 8)
    corner = torch.cartesian_prod(torch.arange(-3, 4), torch.arange(-3, 4)).float()
    flip = torch.arange(49) % 2 == 0
    cut = crop(pixels, corner, flip, (6, 8), mode)
    for k in range(49):
        padded = np.pad(pixels[k].numpy(), ((0, 0), (3, 3), (3, 3)), NUMPY_MODES[mode])
        top, left = (corner[k].int() + 3).tolist()
        expected = padded[:, top : top + 6, left : left + 8]
        expected = expected[:, :, ::-1] if flip[k] else expected
        assert np.array_equal(cut[k].numpy(), expected)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_reflection_matches_numpy_at_any_distance(length):
    padded = np.pad(np.arange(length), (7, 9), "reflect")
    assert reflect(torch.arange(-7, length + 9), length).tolist() == padded.tolist()


@pytest.mark.parametrize("kernel", sorted(PILLOW))
def test_an_image_does_not_depend_on_its_batch(kernel):
    pixels = random_images(6, 12, 12)
    corner = torch.tensor([[0.5, 1.25], [3, 0], [2.2, 2.2], [0, 0], [1, 3], [4.5, 0.1]])
    box = torch.cat([corner, torch.full((6, 2), 7.4)], 1)
    flip = torch.arange(6) % 2 == 0
    together = resample(pixels, box, flip, (16, 16), kernel)
    for k in range(6):
        alone = resample(pixels[k : k + 1], box[k : k + 1], flip[k : k + 1], (16, 16), kernel)
        assert torch.equal(alone[0], together[k])


def test_a_uniform_image_stays_uniform_under_any_kernel():
    pixels = torch.full((1, 3, 10, 10), 200, dtype=torch.uint8)
    box = torch.tensor([[1.7, 0.2, 3.1, 8.9]])
    for kernel in PILLOW:
        out = resample(pixels, box, torch.tensor([False]), (7, 13), kernel)
        assert (out == 200).all()
