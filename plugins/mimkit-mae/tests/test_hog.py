"""Histograms of oriented gradients: which direction is in which bin, and what does not matter."""

import math

import numpy as np
import pytest
import torch
from mimkit_mae.hog import HOG, oriented_histograms
from scipy import ndimage

from mimkit import Batch, Geometry, Grid, Mask, RecipeError, Width, patchify

GRID = Grid(rows=3, cols=5, patch_size=8)


def noise(grid: Grid = GRID, size: int = 2, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, channels, *grid.image_size, generator=generator)


def batch_of(image: torch.Tensor, grid: Grid = GRID, target: torch.Tensor | None = None) -> Batch:
    """All patches are targets, unless told otherwise."""
    masked = torch.ones(len(image), grid.num_patches, dtype=torch.bool)
    mask = Mask.replace(masked, grid)
    if target is not None:
        mask = Mask(grid, mask.context, mask.hidden, target, target >= 0)
    return Batch({"image": image}, mask, None, torch.arange(len(image)))


def slope(degrees: float, grid: Grid = GRID) -> torch.Tensor:
    """An image that brightens in one direction, from x (right) towards y (down)."""
    height, width = grid.image_size
    y, x = torch.arange(height)[:, None], torch.arange(width)
    angle = math.radians(degrees)
    return (x * math.cos(angle) + y * math.sin(angle)).expand(1, 3, height, width) / 64


def inner_histogram(image: torch.Tensor) -> torch.Tensor:
    """Of the middle cell, whose pixels have no mirrored neighbour: (channels, 9)."""
    return oriented_histograms(image, 8)[0, :, :, 1, 2]


# ----------------------------------------------------------------------------------------- width


@pytest.mark.parametrize(
    ("grid", "channels", "cell_size", "cells", "size"),
    [
        (Grid(14, 14, 16), 3, 8, 2, 108),  # as published
        (Grid(3, 5, 16), 1, 4, 4, 144),
        (Grid(3, 5, 8), 3, 8, 1, 27),
        (Grid(8, 8, 4), 3, 8, 1, 27),  # a cell is no larger than a patch
    ],
)
def test_width_and_shape(grid, channels, cell_size, cells, size):
    target = HOG(Geometry(grid, channels), cell_size=cell_size)
    assert target.width == Width("vector", size)
    assert target.cells == cells
    found = target(batch_of(noise(grid, channels=channels), grid), None)
    assert found.shape == (2, 1, grid.num_patches, size)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_cells_must_divide_patches():
    with pytest.raises(RecipeError, match="cell_size: must divide the patch size 14, but is 8"):
        HOG(Geometry(Grid(16, 16, 14)))


# ------------------------------------------------------------------------------------ directions


@pytest.mark.parametrize("degrees", [10, 30, 50, 70, 90, 110, 130, 150, 170])
@pytest.mark.parametrize("half_turn", [0, 180])
def test_a_slope_is_in_the_bin_of_its_direction_whichever_way_it_rises(degrees, half_turn):
    found = inner_histogram(slope(degrees + half_turn).double())
    torch.testing.assert_close(found, torch.eye(9, dtype=torch.double)[degrees // 20].expand(3, 9))


@pytest.mark.parametrize("sign", [1, -1])
def test_edges_are_in_the_bin_of_the_direction_across_them(sign):
    vertical = torch.zeros(1, 3, *GRID.image_size)
    vertical[..., 20:] = sign  # from the middle of the middle cell to the right
    assert torch.equal(inner_histogram(vertical).argmax(dim=-1), torch.tensor([0, 0, 0]))
    assert inner_histogram(vertical)[:, 0].eq(1).all()
    horizontal = torch.zeros(1, 3, *GRID.image_size)
    horizontal[..., 12:, :] = sign
    assert inner_histogram(horizontal)[:, 4].eq(1).all()


def test_a_quarter_turn_moves_a_slope_by_four_and_a_half_bins():
    square = Grid(3, 3, 8)
    image = slope(35, square)
    before = oriented_histograms(image, 8)[0, :, :, 1, 1]
    after = oriented_histograms(image.rot90(-1, (2, 3)), 8)[0, :, :, 1, 1]  # x becomes y
    assert before.argmax(dim=-1).eq(35 // 20).all()
    assert after.argmax(dim=-1).eq((35 + 90) // 20).all()


def test_a_channel_has_its_own_histogram():
    image = torch.cat([slope(10)[:, :1], slope(50)[:, :1], torch.zeros_like(slope(0)[:, :1])], 1)
    found = inner_histogram(image)
    assert found[0].argmax() == 0
    assert found[1].argmax() == 2
    assert found[2].eq(0).all()


def test_histograms_are_those_of_another_implementation_pixel_by_pixel():
    image = noise()[0, 0].double().numpy()
    gx = ndimage.sobel(image, axis=1, mode="mirror")
    gy = ndimage.sobel(image, axis=0, mode="mirror")
    direction = np.degrees(np.arctan2(gy, gx)) % 180
    sums = np.zeros((9, *GRID.image_size))
    for row, col in np.ndindex(image.shape):
        sums[int(direction[row, col] // 20), row, col] = math.hypot(gx[row, col], gy[row, col])
    sums = sums.reshape(9, 3, 8, 5, 8).sum(axis=(2, 4))
    expected = sums / np.linalg.norm(sums, axis=0)
    found = oriented_histograms(torch.from_numpy(image)[None, None], 8)[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(expected))


# ------------------------------------------------------------------------- what does not matter


def test_offset_and_contrast_of_a_channel_do_not_matter():
    """So the normalisation of the encoder's view need not be undone."""
    image = noise().mul(255).round()  # whole numbers: differences are exact
    target = HOG(Geometry(GRID))
    before = target(batch_of(image), None)
    brighter = image + torch.tensor([16.0, 0.0, -32.0])[:, None, None]
    assert torch.equal(target(batch_of(brighter), None), before)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((128.0, 64.0, 32.0), (64.0, 32.0, 8.0)))
    torch.testing.assert_close(target(batch_of((image - mean) / std), None), before)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -2.117])
def test_flat_colour_gives_zeros(value):
    image = torch.full((2, 3, *GRID.image_size), value)
    assert HOG(Geometry(GRID))(batch_of(image), None).eq(0).all()


def test_rounding_of_flat_colour_gives_next_to_nothing_and_one_grey_level_a_direction():
    flat = 0.3 + noise() * 1e-7
    assert HOG(Geometry(GRID))(batch_of(flat), None).abs().max() < 0.1
    flat[..., 12, 20] += 1 / 255
    assert oriented_histograms(flat, 8)[:, :, :, 1, 2].norm(dim=2).gt(0.999).all()


def test_histograms_of_noise_have_norm_1_and_are_not_negative():
    found = oriented_histograms(noise(), 4)
    assert found.shape == (2, 3, 9, 6, 10)
    assert found.min() >= 0
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, 3, 6, 10))


# ---------------------------------------------------------------------------------------- places


def test_cells_lie_row_by_row_in_their_patch():
    grid = Grid(3, 5, 16)
    image = noise(grid)
    found = HOG(Geometry(grid))(batch_of(image, grid), None).view(2, 15, 2, 2, 3, 9)
    cells = oriented_histograms(image, 8)  # (2, 3, 9, 6, 10)
    torch.testing.assert_close(found[1, 7, 1, 0], cells[1, :, :, 2 * 1 + 1, 2 * 2 + 0])
    by_patch = patchify(cells.flatten(1, 2), 2)  # (2, 15, 27, 2, 2)
    torch.testing.assert_close(found, by_patch.view(2, 15, 3, 9, 2, 2).permute(0, 1, 4, 5, 2, 3))


def test_histograms_are_those_of_the_targets_also_where_they_are_padded_or_in_groups():
    target = torch.tensor([[[3, 14, 0], [7, 3, 0]], [[5, 0, 0], [1, 2, 14]]])
    image = noise()
    whole = HOG(Geometry(GRID))(batch_of(image), None)[:, 0]
    found = HOG(Geometry(GRID))(batch_of(image, target=target), None)
    assert found.shape == (2, 2, 3, 27)
    assert torch.equal(found[0, 0, 1], whole[0, 14])
    assert torch.equal(found[1, 1, 2], whole[1, 14])


def test_predictions_are_drawn_as_strokes_along_the_edges():
    image = torch.zeros(1, 3, *GRID.image_size)
    target = HOG(Geometry(GRID))
    prediction = torch.zeros(1, 1, 1, 27)
    prediction.view(3, 9)[:, 4] = 1  # gradient downwards: a horizontal edge
    batch = batch_of(image, target=torch.tensor([[[7]]]))
    (picture,) = target.render(prediction, batch)
    cell = picture.image[0, 0, 8:16, 16:24]
    rows = cell.amax(dim=1)
    assert rows.argmax() in (3, 4)
    assert cell[3].min() > cell[0].max()
    assert picture.image[0, :, :8].eq(0).all()
