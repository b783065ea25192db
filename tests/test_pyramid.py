"""The pyramid on maps of one size, against that of transformers."""

import pytest
import torch
import upernet_oracle
from torch import nn

from mimkit import BoundaryError, Geometry, Grid, Level, RecipeError
from mimkit.builtin.encoders import ViT
from mimkit.evaluate.pyramid import Pyramid

PLAIN = (Level(16, 16),) * 4


def maps(rows, cols, channels=16):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, channels, rows, cols, generator=generator) for _ in range(4))


@pytest.fixture
def beit_backbones():
    """A backbone of transformers with a pyramid, and the same without."""
    transformers = pytest.importorskip("transformers")

    def make(*image_size):
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": image_size,
            "patch_size": 4,
            "out_indices": [1, 2, 3, 4],
            "drop_path_rate": 0.0,
        }
        with_it, without = (
            transformers.BeitBackbone(transformers.BeitConfig(**sizes, add_fpn=add_fpn))
            for add_fpn in (True, False)
        )
        upernet_oracle.shaken(with_it)
        shared = {k: v for k, v in with_it.state_dict().items() if "fpn" not in k}
        without.load_state_dict(shared)
        return with_it, without.eval()

    return make


@pytest.mark.parametrize("image_size", [(16, 16), (20, 12)])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_that_of_transformers(beit_backbones, image_size, training):
    theirs, without = beit_backbones(*image_size)
    ours = Pyramid((Level(16, 4),) * 4)
    ours.load_state_dict(upernet_oracle.pyramid(theirs, ours))
    image = torch.randn(2, 3, *image_size)
    with torch.no_grad():
        plain = without(image).feature_maps
        found = ours.train(training)(plain)
        expected = theirs.train(training)(image).feature_maps
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert other.std() > 0.01


def test_patches_of_16_px_become_strides_of_4_8_16_32():
    levels = tuple(Level(channels, 16) for channels in (8, 12, 16, 20))
    pyramid = Pyramid(levels)
    strides = [(level.channels, level.stride) for level in pyramid.levels]
    assert strides == [(8, 4), (12, 8), (16, 16), (20, 32)]
    shapes = [
        tuple(each.shape[1:]) for each in pyramid([torch.zeros(2, c, 6, 4) for c, _ in strides])
    ]
    assert shapes == [(8, 24, 16), (12, 12, 8), (16, 6, 4), (20, 3, 2)]


def test_every_cell_keeps_its_place():
    pyramid = Pyramid(PLAIN).eval()
    before, other = maps(4, 6), tuple(each.clone() for each in maps(4, 6))
    for each in other:
        each[:, :, 2, 5] += 1
    with torch.no_grad():
        found = zip(pyramid(before), pyramid(other), pyramid.levels, strict=True)
    for one, two, level in found:
        changed = (one - two).abs().amax(dim=(0, 1)).gt(1e-6).nonzero()
        side = max(level.stride, 16)  # px: the patch, or the one larger cell that holds it
        places = (changed * level.stride // side).unique(dim=0).tolist()
        assert places == [[2 * 16 // side, 5 * 16 // side]]


def test_maps_of_different_strides_are_passed_on():
    levels = (Level(8, 4), Level(16, 8), Level(32, 16))
    pyramid = Pyramid(levels)
    given = [torch.zeros(1, level.channels, 64 // level.stride, 1) for level in levels]
    assert pyramid.levels == levels
    assert not list(pyramid.parameters())
    assert all(one is other for one, other in zip(pyramid(given), given, strict=True))


def test_odd_rows_and_columns_are_taken():
    found = Pyramid(PLAIN)(maps(15, 20))
    assert [tuple(each.shape[-2:]) for each in found] == [(60, 80), (30, 40), (15, 20), (7, 10)]


def test_it_stands_on_a_dense_backbone():
    grid = Grid(3, 5, 8)
    dense = ViT(Geometry(grid), embed_dim=16, depth=4, num_heads=2).dense()
    pyramid = Pyramid(dense.levels)
    found = pyramid(dense(torch.randn(2, 3, *grid.image_size)))
    assert [level.stride for level in pyramid.levels] == [2, 4, 8, 16]
    assert [tuple(each.shape[-2:]) for each in found] == [(12, 20), (6, 10), (3, 5), (1, 2)]


def test_group_norm_does_not_look_at_other_images():
    pyramid = Pyramid(PLAIN, norm="group").train()
    assert not [part for part in pyramid.modules() if isinstance(part, nn.BatchNorm2d)]
    both = pyramid(maps(4, 4))
    alone = pyramid([each[:1] for each in maps(4, 4)])
    for one, other in zip(both, alone, strict=True):
        torch.testing.assert_close(one[:1], other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "four maps of one stride, but there are 0"),
        (PLAIN[:3], "four maps of one stride, but there are 3"),
        ((Level(16, 14),) * 4, "multiple of 4 px, but is 14 px"),
    ],
)
def test_what_cannot_be_made_is_told(levels, message):
    with pytest.raises(RecipeError, match=message):
        Pyramid(levels)


def test_a_single_row_cannot_be_pooled():
    with pytest.raises(BoundaryError, match="at least 2 x 2 cells, but these have 1 x 4"):
        Pyramid(PLAIN)(maps(1, 4))
