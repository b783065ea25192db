"""Records, patches and the boundary check."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimkit import (
    Batch,
    BoundaryError,
    Grid,
    Mask,
    RecipeError,
    Tokens,
    paste,
    patchify,
    scatter,
    take,
    unpatchify,
)
from mimkit.parts.shapes import Axes


def masked_rows(*rows: list[int], num_patches: int = 16) -> torch.Tensor:
    masked = torch.zeros(len(rows), num_patches, dtype=torch.bool)
    for row, positions in zip(masked, rows, strict=True):
        row[positions] = True
    return masked


# ------------------------------------------------------------------------------------- patches


def test_patch_i_is_at_row_i_div_cols_and_col_i_mod_cols():
    grid = Grid(rows=3, cols=5, patch_size=2)
    number = torch.arange(15.0).view(1, 1, 3, 5)
    image = number.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    patches = patchify(image, grid.patch_size)
    assert patches.shape == (1, 15, 1, 2, 2)
    assert torch.equal(patches.mean(dim=(2, 3, 4))[0], torch.arange(15.0))


def test_unpatchify_undoes_patchify(any_grid):
    image = torch.randn(2, 3, *any_grid.image_size)
    assert torch.equal(unpatchify(patchify(image, any_grid.patch_size), any_grid), image)


@pytest.mark.parametrize("index_shape", [(2, 3), (2, 2, 3)])
@pytest.mark.parametrize("trailing", [(), (7,), (3, 4, 4)])
def test_take_picks_each_images_own_rows(index_shape, trailing):
    tokens = torch.randn(2, 9, *trailing)
    index = torch.randint(0, 9, index_shape)
    picked = take(tokens, index)
    expected = torch.stack([row[rows] for row, rows in zip(tokens, index, strict=True)])
    assert torch.equal(picked, expected)


def test_scatter_puts_back_what_take_picked_and_leaves_the_rest():
    tokens, index = torch.randn(2, 9, 4), torch.tensor([[0, 5, 8], [1, 2, 3]])
    changed = scatter(tokens, index, take(tokens, index) + 1)
    assert torch.equal(take(changed, index), take(tokens, index) + 1)
    untouched = torch.ones(2, 9, dtype=torch.bool).scatter(1, index, False)
    assert torch.equal(changed[untouched], tokens[untouched])


def test_scatter_takes_values_of_another_precision():
    tokens, index = torch.zeros(2, 9, 4), torch.tensor([[0, 5], [1, 2]])
    assert scatter(tokens, index, torch.ones(2, 2, 4, dtype=torch.bfloat16)).sum() == 16


def test_paste_changes_exactly_the_valid_targets(grid, make_batch):
    # Image 0 pads with position 0 and does not mask it; image 1 pads with 0 and masks it.
    mask = Mask.replace(masked_rows([3, 9], [0], [1, 2, 15]), grid)
    image = make_batch(mask).image
    patches = torch.full((3, 1, 3, 3, 4, 4), 100.0)
    patches[~mask.valid] = -1.0
    pasted = patchify(paste(image, patches, mask), 4)
    expected = patchify(image, 4).clone()
    expected[mask.hidden] = 100.0
    assert torch.equal(pasted, expected)


# --------------------------------------------------------------------------------------- masks


@given(data=st.data())
def test_drop_splits_the_grid_in_ascending_order(data):
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 5))
    count = data.draw(st.integers(0, rows * cols))
    lists = [
        data.draw(st.permutations(range(rows * cols)))[:count]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    masked = masked_rows(*lists, num_patches=rows * cols)
    mask = Mask.drop(masked, Grid(rows, cols, 4))
    for positions, context, target in zip(lists, mask.context, mask.target, strict=True):
        assert target.tolist() == [sorted(positions)]
        assert context.tolist() == sorted(set(range(rows * cols)) - set(positions))
    assert mask.valid.all()
    assert not mask.hidden.any()


@given(data=st.data())
def test_replace_keeps_the_grid_and_pads_the_targets(data):
    lists = [
        data.draw(st.permutations(range(15)))[: data.draw(st.integers(1, 7))]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    masked = masked_rows(*lists, num_patches=15)
    mask = Mask.replace(masked, Grid(3, 5, 4), num_targets=7)
    assert mask.target.shape == (len(lists), 1, 7)
    assert torch.equal(mask.hidden, masked)
    assert torch.equal(mask.context, torch.arange(15).expand(len(lists), -1))
    for positions, target, valid in zip(lists, mask.target, mask.valid, strict=True):
        assert target[valid].tolist() == sorted(positions)
        assert target[~valid].eq(0).all()


def test_drop_refuses_unequal_counts(grid):
    with pytest.raises(RecipeError, match=r"counts range from 1 to 2\. Use Mask\.replace"):
        Mask.drop(masked_rows([1], [2, 3]), grid)


@pytest.mark.parametrize("rows", [([1, 2, 3], [1]), ([], [1])])
def test_replace_refuses_too_many_or_no_targets(grid, rows):
    with pytest.raises(RecipeError, match="must mask 1 to 2 patches"):
        Mask.replace(masked_rows(*rows), grid, num_targets=2)


def test_a_batch_splits_into_its_images(grid, make_batch):
    batch = make_batch(Mask.replace(masked_rows([1], [2, 3], [4], [5, 6]), grid))
    first, second = batch.split(2)
    assert second.index.tolist() == [2, 3]
    assert torch.equal(torch.cat([first.image, second.image]), batch.image)
    assert torch.equal(second.mask.target, batch.mask.target[2:])
    assert torch.equal(second.mask.valid, batch.mask.valid[2:])
    assert batch.split(1) == [batch]


def test_records_move_with_all_their_tensors(grid, make_batch):
    moved: Batch = make_batch(Mask.drop(masked_rows([1], [2]), grid)).to(torch.device("meta"))
    assert moved.labels is None
    assert {
        tensor.device.type
        for tensor in (moved.image, moved.index, moved.mask.context, moved.mask.valid)
    } == {"meta"}
    assert moved.mask.grid == grid


# --------------------------------------------------------------------------------------- shapes


def test_axes_bind_letters_at_first_sight():
    axes = Axes(B=2)
    axes.check("patches", torch.zeros(2, 5, 8), "B S D")
    axes.check("index", torch.zeros(2, 5, dtype=torch.int64), "B S", torch.int64)
    assert axes.sizes == {"B": 2, "S": 5, "D": 8}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 6), r"^x has shape \(2, 6\); it must be \(B=2, S=5\)\.$"),
        (torch.zeros(2, 5, 1), r"^x has shape \(2, 5, 1\); it must be \(B=2, S=5\)\.$"),
        (torch.zeros(2, 5), r"^x has dtype torch\.float32; it must be torch\.int64\.$"),
        (None, r"^x must be a tensor \(B S\), but is None\.$"),
        (Tokens, r"^x must be a tensor"),
    ],
)
def test_axes_say_what_came_and_what_must_come(value, message):
    with pytest.raises(BoundaryError, match=message):
        Axes(B=2, S=5).check("x", value, "B S", torch.int64)
