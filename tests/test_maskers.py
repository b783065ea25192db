"""The random masker."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimkit import Geometry, Grid, RecipeError
from mimkit.builtin.maskers import RandomMasker


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    rows=st.integers(1, 6),
    cols=st.integers(2, 6),
    ratio=st.floats(0.05, 0.95),
    mode=st.sampled_from(["drop", "replace"]),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_every_image_masks_the_promised_number(rows, cols, ratio, mode, batch_size, seed):
    grid = Grid(rows, cols, 4)
    if not 1 <= int(ratio * grid.num_patches + 1e-6) < grid.num_patches:
        return
    masker = RandomMasker(Geometry(grid), mask_ratio=ratio, mode=mode)
    mask = masker.sample(batch_size, generator(seed))
    assert mask.target.shape == (batch_size, 1, masker.num_targets)
    assert mask.valid.all()
    visible = [row[~hidden] for row, hidden in zip(mask.context, mask.hidden, strict=True)]
    for seen, target in zip(visible, mask.target[:, 0], strict=True):
        assert sorted([*seen.tolist(), *target.tolist()]) == list(range(grid.num_patches))
        assert target.tolist() == sorted(target.tolist())


@pytest.mark.parametrize(
    ("grid", "ratio", "expected"),
    [
        (Grid(4, 4, 8), 0.25, 4),
        (Grid(7, 7, 32), 0.25, 12),
        (Grid(14, 14, 16), 0.75, 147),
        (Grid(10, 10, 4), 0.29, 29),  # 0.29 * 100 is a little under 29 in floating point
    ],
)
def test_the_ratio_rounds_down_to_patches(grid, ratio, expected):
    assert RandomMasker(Geometry(grid), mask_ratio=ratio).num_targets == expected


def test_masks_depend_on_the_generator_alone(geometry):
    masker = RandomMasker(geometry, mask_ratio=0.5)
    state = torch.get_rng_state()
    first, same, other = (masker.sample(8, generator(seed)).target for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_patch_is_masked_equally_often_and_images_differ(geometry):
    mask = RandomMasker(geometry, mask_ratio=0.25).sample(8000, generator())
    frequency = torch.bincount(mask.target.flatten(), minlength=16) / 8000
    torch.testing.assert_close(frequency, torch.full((16,), 0.25), atol=0.02, rtol=0)
    assert mask.target[:, 0].unique(dim=0).shape[0] > 1500  # of 1820 possible


def test_a_unit_is_masked_as_a_whole():
    grid = Grid(4, 6, 4)
    masker = RandomMasker(Geometry(grid), mask_ratio=0.5, mode="replace", unit=2)
    mask = masker.sample(16, generator())
    squares = mask.hidden.view(16, 2, 2, 3, 2).float().mean(dim=(2, 4))
    assert masker.num_targets == 12
    assert set(squares.flatten().tolist()) == {0.0, 1.0}


def test_all_patches_can_be_predicted_from_the_masked_image(geometry):
    options = {"mask_ratio": 0.5, "mode": "replace"}
    masker = RandomMasker(geometry, predict="all", **options)
    mask = masker.sample(4, generator())
    assert masker.num_targets == 16
    assert torch.equal(mask.target, torch.arange(16).expand(4, 1, 16))
    assert mask.valid.all()
    assert torch.equal(mask.hidden, RandomMasker(geometry, **options).sample(4, generator()).hidden)


@pytest.mark.parametrize("mode", ["drop", "replace"])
def test_it_says_whether_it_hides(geometry, mode):
    masker = RandomMasker(geometry, mask_ratio=0.5, mode=mode)
    assert masker.hides == bool(masker.sample(2, generator()).hidden.any())


@pytest.mark.parametrize(
    "options", [{"mode": "drop"}, {"mode": "replace"}, {"mode": "replace", "predict": "all"}]
)
def test_the_mask_of_chosen_patches_is_the_one_that_is_drawn_when_they_are(any_grid, options):
    masker = RandomMasker(Geometry(any_grid), mask_ratio=0.4, **options)
    drawn = masker.sample(3, generator())
    masked = torch.ones(3, any_grid.num_patches, dtype=torch.bool)
    masked.scatter_(1, drawn.context, drawn.hidden)
    made = masker.mask_of(masked)
    assert made.grid == any_grid
    for name in ("context", "hidden", "target", "valid"):
        assert torch.equal(getattr(made, name), getattr(drawn, name)), name


@pytest.mark.parametrize("mode", ["drop", "replace"])
def test_a_masker_takes_more_or_fewer_patches_than_it_draws(geometry, mode):
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, [1, 5, 6]] = masked[1, [0, 14, 15]] = True
    mask = RandomMasker(geometry, mask_ratio=0.5, mode=mode).mask_of(masked)
    assert mask.target[:, 0].tolist() == [[1, 5, 6], [0, 14, 15]]
    assert mask.valid.all()


def test_an_image_that_drops_more_patches_than_another_is_refused(geometry):
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, :3] = masked[1, :4] = True
    with pytest.raises(RecipeError, match="counts range from 3 to 4"):
        RandomMasker(geometry, mask_ratio=0.5).mask_of(masked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.01}, "mask_ratio: must mask at least one .* of 16 units"),
        ({"mask_ratio": 1.0}, "not all of 16 units"),
        ({"mask_ratio": 0.5, "unit": 3}, "unit: must divide the grid of 4 x 4 patches"),
        ({"mask_ratio": 0.5, "predict": "all"}, "predict: 'all' needs mode = 'replace'"),
    ],
)
def test_impossible_options_are_refused(geometry, options, message):
    with pytest.raises(RecipeError, match=message):
        RandomMasker(geometry, **options)
