"""The blockwise masker, against the algorithm in plain loops and its measured statistics."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mimkit_beit import masker as module
from mimkit_beit.masker import ATTEMPTS, ROUNDS, BlockMasker

from mimkit import Geometry, Grid, Mask, RecipeError

NUM_MASKS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(rows: int = 14, cols: int = 14, **options) -> BlockMasker:
    return BlockMasker(Geometry(Grid(rows, cols, 4)), **options)


def counts(mask: Mask) -> torch.Tensor:
    return mask.valid.sum((1, 2))


def frequency(mask: Mask) -> torch.Tensor:
    """How often each patch is masked, (rows, cols)."""
    masked = torch.zeros(mask.target.shape[0], mask.grid.num_patches + 1)
    masked.scatter_(1, torch.where(mask.valid, mask.target, mask.grid.num_patches)[:, 0], 1.0)
    return masked[:, :-1].mean(0).view(mask.grid.rows, mask.grid.cols)


# ------------------------------------------------------------------- the algorithm, in plain loops


class Loops:
    """One image, one attempt, one patch at a time; ``draw`` gives numbers in [0, 1)."""

    def __init__(self, rows, cols, num_targets, min_block, *, max_block=None, exact=False):
        self.rows, self.cols = rows, cols
        self.num_targets, self.min_block = num_targets, min_block
        self.max_block = max_block or num_targets
        self.exact = exact

    def attempt(self, mask, missing, area, aspect, top, left):
        area = self.min_block + (missing - self.min_block) * area
        low, high = math.log(0.3), math.log(1 / 0.3)
        aspect = math.exp(low + (high - low) * aspect)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= self.rows or width >= self.cols:
            return 0
        top = int(top * (self.rows - height + 1))
        left = int(left * (self.cols - width + 1))
        block = [(r, c) for r in range(top, top + height) for c in range(left, left + width)]
        new = sum(not mask[r][c] for r, c in block)
        if not 0 < new <= missing:
            return 0
        for r, c in block:
            mask[r][c] = True
        return new

    def round(self, mask, count, draws):
        """Returns the new count; ``draws`` gives the four numbers of each attempt."""
        missing = min(self.num_targets - count, self.max_block)
        for _ in range(ATTEMPTS):
            new = self.attempt(mask, missing, *next(draws))
            if new:
                return count + new
        return count

    def goes_on(self, before, after):
        if after >= self.num_targets:
            return False
        return self.exact or after > before or after == 0

    def empty(self):
        return [[False] * self.cols for _ in range(self.rows)]

    def mask(self, rng):
        draws = iter(lambda: (rng.random(), rng.random(), rng.random(), rng.random()), None)
        mask, before, after = self.empty(), 0, 0
        while self.goes_on(before, after) or not after:
            before, after = after, self.round(mask, after, draws)
        return mask


@pytest.mark.parametrize(
    ("rows", "cols", "options"),
    [
        (14, 14, {"num_targets": 75, "min_block": 16}),
        (14, 14, {"num_targets": 98, "min_block": 16, "exact": True}),
        (8, 8, {"num_targets": 25, "min_block": 5, "max_block": 9}),
        (6, 20, {"num_targets": 60, "min_block": 9}),
        (3, 5, {"num_targets": 7, "min_block": 2}),
        (5, 3, {"num_targets": 9, "min_block": 2, "exact": True}),
        (2, 2, {"num_targets": 2, "min_block": 2}),
    ],
)
def test_the_same_random_numbers_give_the_masks_of_plain_loops(rows, cols, options):
    loops, masker = Loops(rows, cols, **options), build(rows, cols, **options)
    num_images, images = 16, list(range(16))
    masks, count = [loops.empty() for _ in images], [0] * num_images
    state = generator(3)
    while images:
        u = torch.rand(ROUNDS, 4, ATTEMPTS, len(images), generator=state).double()
        ended = set()
        for image, rounds in zip(images, u.permute(3, 0, 2, 1).tolist(), strict=True):
            for attempts in rounds:
                before = count[image]
                count[image] = loops.round(masks[image], before, iter(attempts))
                if not loops.goes_on(before, count[image]):
                    ended.add(image)
                    break
        images = [image for image in images if image not in ended]
    assert torch.equal(
        masker.sample(num_images, generator(3)).target,
        Mask.replace(torch.tensor(masks).flatten(1), masker.grid, masker.num_targets).target,
    )


@pytest.mark.parametrize(("num_targets", "exact"), [(75, False), (98, True)])
def test_the_masks_of_a_batch_are_distributed_as_those_of_plain_loops(num_targets, exact):
    rng = random.Random(0)
    loops = Loops(14, 14, num_targets, 16, exact=exact)
    plain = torch.tensor([loops.mask(rng) for _ in range(4000)])
    mask = build(num_targets=num_targets, exact=exact).sample(NUM_MASKS, generator())
    # The standard deviation of the difference of two shares is at most 0.009.
    torch.testing.assert_close(frequency(mask), plain.float().mean(0), atol=0.035, rtol=0)
    for count in range(num_targets - 3, num_targets + 1):
        expected = float((plain.sum((1, 2)) == count).float().mean())
        assert (counts(mask) == count).float().mean().item() == pytest.approx(expected, abs=0.03)


# ----------------------------------------------------------------------------- measured statistics


def test_the_published_masks_have_the_measured_statistics():
    mask = build(num_targets=75).sample(NUM_MASKS, generator())
    count = counts(mask).double()
    assert 74.3 < count.mean() < 74.6
    assert count.std() == pytest.approx(0.99, abs=0.05)
    assert 0.65 < (count == 75).double().mean() < 0.68
    assert 60 <= count.min() < 70
    assert count.max() == 75
    often = frequency(mask)
    for corner in (often[0, 0], often[0, -1], often[-1, 0], often[-1, -1]):
        assert corner == pytest.approx(0.040, abs=0.007)
    for edge in (often[0, 7], often[-1, 7], often[7, 0], often[7, -1]):
        assert edge == pytest.approx(0.19, abs=0.015)
    assert often[6:8, 6:8].mean() == pytest.approx(0.716, abs=0.01)
    # An exclusive bound of the place would never mask the last row and column.
    for line in (often[0], often[-1], often[:, 0], often[:, -1]):
        assert line.mean() == pytest.approx(0.133, abs=0.006)


def test_exact_masks_have_the_measured_statistics():
    mask = build(num_targets=98, exact=True, mode="drop").sample(NUM_MASKS, generator())
    assert mask.target.shape == (NUM_MASKS, 1, 98)
    assert mask.valid.all()
    often = frequency(mask)
    corners = torch.stack([often[0, 0], often[0, -1], often[-1, 0], often[-1, -1]])
    assert corners.mean() == pytest.approx(0.062, abs=0.004)
    assert often[6:8, 6:8].mean() == pytest.approx(0.865, abs=0.008)


@pytest.mark.parametrize(
    ("side", "options", "min_block", "mean"),
    [
        (8, {"num_targets": 25}, 5, 24.93),
        (8, {"num_targets": 25, "min_block": 16}, 16, 24.54),
        (7, {"num_targets": 19}, 4, 18.96),
        (7, {"num_targets": 19, "min_block": 16}, 16, 18.49),
        (6, {"num_targets": 14}, 3, 13.99),
        (4, {"num_targets": 6}, 2, 6.0),
        (14, {"num_targets": 75}, 16, 74.47),
    ],
)
def test_the_least_block_scales_with_the_grid(side, options, min_block, mean):
    masker = build(side, side, **options)
    assert masker.min_block == min_block
    count = counts(masker.sample(NUM_MASKS, generator())).double()
    assert count.mean() == pytest.approx(mean, abs=0.03)


# ------------------------------------------------------------------------------------ every option


@settings(deadline=None)
@given(
    rows=st.integers(3, 10),
    cols=st.integers(3, 10),
    share=st.floats(0.02, 0.98),
    kind=st.sampled_from([("replace", False), ("replace", True), ("drop", True)]),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_every_image_masks_one_to_all_targets(rows, cols, share, kind, batch_size, seed):
    mode, exact = kind
    num_targets = min(max(1, int(share * rows * cols)), rows * cols - 1)
    masker = build(rows, cols, num_targets=num_targets, mode=mode, exact=exact)
    mask = masker.sample(batch_size, generator(seed))
    assert mask.target.shape == mask.valid.shape == (batch_size, 1, num_targets)
    assert masker.ragged is not exact
    assert masker.hides is (mode == "replace")
    for image in range(batch_size):
        target = mask.target[image, 0][mask.valid[image, 0]].tolist()
        seen = mask.context[image][~mask.hidden[image]].tolist()
        assert sorted([*seen, *target]) == list(range(rows * cols))
        assert 1 <= len(target) <= num_targets
        assert not exact or len(target) == num_targets


def test_masks_depend_on_the_generator_alone():
    masker = build(num_targets=75)
    state = torch.get_rng_state()
    first, same, other = (masker.sample(8, generator(seed)).target for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_large_batches_are_masked_in_parts(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    masker, state = build(num_targets=75), generator()
    whole = masker.sample(9, generator()).target
    parts = [masker.sample(size, state).target for size in (4, 4, 1)]
    assert torch.equal(whole, torch.cat(parts))


def test_the_ratio_rounds_down_to_patches():
    assert build(mask_ratio=0.4).num_targets == 78  # of 78.4
    assert build(10, 10, mask_ratio=0.29).num_targets == 29  # 0.29 * 100 is below 29 in floats


def test_no_block_is_larger_than_asked():
    options = {"num_targets": 18, "min_block": 1, "max_block": 1, "aspect": (1.0, 1.0)}
    mask = build(6, 6, exact=True, **options).sample(4000, generator())
    # Single patches, unlike larger blocks, do not prefer the centre.
    torch.testing.assert_close(frequency(mask), torch.full((6, 6), 0.5), atol=0.03, rtol=0)


def test_the_aspect_is_height_through_width():
    masker = build(8, 8, num_targets=4, min_block=4, aspect=(4.0, 4.0))
    masked = masker.sample(50, generator()).hidden.view(-1, 8, 8)
    assert (masked.sum(1).amax(1) == 4).all()  # four rows of
    assert (masked.sum(2).amax(1) == 1).all()  # one column


@pytest.mark.parametrize(("exact", "count"), [(True, 5), (False, 1)])
def test_what_lacks_after_all_rounds_is_drawn_fairly(monkeypatch, exact, count):
    monkeypatch.setattr(module, "SPARE_ROUNDS", -100)
    mask = build(4, 4, num_targets=5, exact=exact).sample(8000, generator())
    assert (counts(mask) == count).all()
    torch.testing.assert_close(frequency(mask), torch.full((4, 4), count / 16), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (14, {}, "exactly one of mask_ratio and num_targets must be given, not neither"),
        (14, {"mask_ratio": 0.4, "num_targets": 75}, "must be given, not both"),
        (14, {"mask_ratio": 0.001}, "mask_ratio: must mask at least one .* of them is 0"),
        (14, {"mask_ratio": 1.0}, "not all of 196 patches, but 1.0 of them is 196"),
        (14, {"num_targets": 0}, "num_targets: must mask at least one .* but is 0"),
        (14, {"num_targets": 196}, "num_targets: .* not all of 196 patches, but is 196"),
        (14, {"num_targets": 75, "mode": "drop"}, "mode: 'drop' must .* Set exact = true"),
        (4, {"num_targets": 6, "min_block": 16}, r"min_block: .*\(6 patches\), but is 16"),
        (14, {"num_targets": 75, "max_block": 8, "min_block": 9}, r"\(8 patches\), but is 9"),
        (14, {"num_targets": 75, "aspect": (2.0, 1.0)}, r"aspect: .* but is \[2.0, 1.0\]"),
        (1, {"num_targets": 5}, "smaller than the grid of 1 x 14 patches in both directions"),
        (4, {"num_targets": 8, "min_block": 8, "aspect": (9.0, 9.0)}, "none of 8 to 8 patches"),
    ],
)
def test_what_cannot_be_is_refused(rows, options, message):
    with pytest.raises(RecipeError, match=message):
        build(rows, **options)


def test_it_is_built_without_memory_for_weights():
    with torch.device("meta"):
        masker = build(num_targets=75)
    assert masker.sample(2, generator()).hidden.any(1).all()


def test_all_patches_can_be_predicted_from_the_masked_image():
    geometry = Geometry(Grid(8, 8, 4))
    masker = BlockMasker(geometry, num_targets=25, predict="all")
    mask = masker.sample(16, torch.Generator().manual_seed(0))
    assert (masker.num_targets, masker.ragged) == (64, False)
    assert torch.equal(mask.target, torch.arange(64).expand(16, 1, 64))
    assert mask.valid.all()
    usual = BlockMasker(geometry, num_targets=25).sample(16, torch.Generator().manual_seed(0))
    assert torch.equal(mask.hidden, usual.hidden)
    with pytest.raises(RecipeError, match="predict: 'all' needs mode = 'replace'"):
        BlockMasker(geometry, num_targets=25, predict="all", mode="drop", exact=True)


@pytest.mark.parametrize(
    "options",
    [{"exact": True}, {"exact": True, "mode": "drop"}, {"exact": True, "predict": "all"}],
)
def test_the_mask_of_chosen_patches_is_the_one_that_is_drawn_when_they_are(options):
    masker = BlockMasker(Geometry(Grid(8, 8, 4)), num_targets=25, **options)
    drawn = masker.sample(4, torch.Generator().manual_seed(0))
    masked = torch.ones(4, 64, dtype=torch.bool).scatter(1, drawn.context, drawn.hidden)
    made = masker.mask_of(masked)
    for name in ("context", "hidden", "target", "valid"):
        assert torch.equal(getattr(made, name), getattr(drawn, name)), name


def test_the_mask_of_chosen_patches_is_not_padded():
    masked = torch.zeros(2, 64, dtype=torch.bool)
    masked[0, 3:9] = masked[1, 40:46] = True
    mask = BlockMasker(Geometry(Grid(8, 8, 4)), num_targets=25).mask_of(masked)
    assert mask.target[:, 0].tolist() == [list(range(3, 9)), list(range(40, 46))]
    assert mask.valid.all()
    assert torch.equal(mask.hidden, masked)
