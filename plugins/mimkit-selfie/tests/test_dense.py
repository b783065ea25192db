"""The maps that Selfie's ResNet gives to dense tasks."""

import pytest
import torch
from mimkit_selfie.encoder import PatchResNet

from mimkit import Geometry, Grid, Level

SMALL, LARGE = Grid(4, 4, 8), Grid(2, 3, 32)


def build(grid=SMALL, **options):
    """A small encoder whose batch norms have seen something."""
    torch.manual_seed(0)
    options = {"width": 8, "depths": (1, 2, 2, 2)} | options
    encoder = PatchResNet(Geometry(grid), **options).train()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        encoder(torch.randn(4, 3, *grid.image_size))
    return encoder.eval()


def seeded(make):
    """What is made with the same random numbers for stage 4 every time."""
    torch.manual_seed(3)
    return make().eval()


@pytest.mark.parametrize(("grid", "strides"), [(SMALL, (1, 2, 4, 8)), (LARGE, (4, 8, 16, 32))])
def test_strides_follow_from_the_stem(grid, strides):
    dense = build(grid).dense().eval()
    assert dense.levels == tuple(
        Level(channels, stride)
        for channels, stride in zip((32, 64, 128, 256), strides, strict=True)
    )
    assert dense.last == dense.levels[2]
    for size in (grid.image_size, (64, 96)):  # for which it was not made
        maps = dense(torch.randn(2, 3, *size))
        assert [tuple(each.shape) for each in maps] == [
            (2, level.channels, size[0] // level.stride, size[1] // level.stride)
            for level in dense.levels
        ]


def test_a_size_that_no_stride_divides_is_rounded_up():
    maps = build().dense().eval()(torch.randn(1, 3, 37, 50))
    assert [tuple(each.shape[-2:]) for each in maps] == [(37, 50), (19, 25), (10, 13), (5, 7)]


@pytest.mark.parametrize("grid", [SMALL, LARGE])
@pytest.mark.parametrize("closing_norm", [True, False])
@torch.no_grad()
def test_features_are_those_of_the_encoder(grid, closing_norm):
    encoder = build(grid, closing_norm=closing_norm)
    dense, image = encoder.dense(Grid(9, 9, 9)).eval(), torch.randn(2, 3, 64, 96)
    found, patches = dense.features(image), encoder.features(image).patches
    assert torch.equal(found.flatten(2).mT, patches)
    assert torch.equal(found[:, :, 1, 2], patches[:, found.shape[3] + 2])
    if closing_norm:
        assert torch.equal(found, dense(image)[2])


@pytest.mark.parametrize("closing_norm", [True, False])
@torch.no_grad()
def test_maps_are_what_the_next_stage_of_the_whole_resnet_reads(closing_norm):
    encoder, image = build(closing_norm=closing_norm), torch.randn(2, 3, 32, 48)
    dense, whole = seeded(encoder.dense), seeded(encoder.backbone)
    read = []
    for stage in whole.stages[1:]:
        norm = stage.get_submodule("blocks.0.norm1")
        norm.register_forward_hook(lambda _, __, output: read.append(output))
    whole.norm.register_forward_hook(lambda _, __, output: read.append(output))
    pooled, maps = whole(image), dense(image)
    assert all(torch.equal(one, other) for one, other in zip(maps, read, strict=True))
    assert torch.equal(maps[3].mean(dim=(2, 3)), pooled)
    assert all((each >= 0).all() and (each > 0).any() for each in maps)


def test_in_training_statistics_move_as_in_the_whole_resnet():
    encoder, image = build(), torch.randn(2, 3, 32, 32)
    dense, whole = seeded(encoder.dense).train(), seeded(encoder.backbone).train()
    dense(image)
    whole(image)
    theirs = whole.stages[1].get_submodule("blocks.0.norm1")
    assert torch.equal(dense.norms[0].running_mean, theirs.running_mean)
    assert dense.norms[0].num_batches_tracked == theirs.num_batches_tracked
    assert torch.equal(dense.norms[3].running_var, whole.norm.running_var)


def test_groups_are_those_of_the_whole_resnet():
    encoder = build()
    dense, whole = seeded(encoder.dense), seeded(encoder.backbone)
    shapes = [
        [sorted(tuple(p.shape) for p in group) for group in network.layer_groups()]
        for network in (dense, whole)
    ]
    assert shapes[0] == shapes[1]
    grouped = [id(parameter) for group in dense.layer_groups() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in dense.parameters())
    assert not set(grouped) & {id(parameter) for parameter in encoder.parameters()}
    dense.train()
    sum(each.pow(3).sum() for each in dense(torch.randn(2, 3, 32, 32))).backward()
    for name, parameter in dense.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_a_cell_belongs_to_its_place_in_the_image():
    dense, image = build().dense().eval(), torch.randn(1, 3, 96, 128)
    other = image.clone()
    other[:, :, 64:72, 104:112] += 1  # whose cell of stride 8 is row 8, column 13
    for level, one, two in zip(dense.levels, dense(image), dense(other), strict=True):
        moved = (one - two).abs().mean(dim=(0, 1))
        row, col = divmod(int(moved.argmax()), moved.shape[1])
        assert abs((row + 0.5) * level.stride - 68) <= 8
        assert abs((col + 0.5) * level.stride - 108) <= 8
