"""The patch network and the ResNet made of it."""

import pytest
import torch
from mimkit_selfie.encoder import PatchResNet
from mimkit_selfie.resnet import make_stage

from mimkit import Geometry, Grid, RecipeError, patchify, take, unpatchify

SMALL = Grid(rows=4, cols=4, patch_size=8)
LARGE = Grid(rows=7, cols=7, patch_size=32)
CONTEXT = torch.tensor([[0, 3, 7, 12], [1, 2, 8, 15]])


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(grid: Grid = SMALL, **options) -> PatchResNet:
    torch.manual_seed(0)
    return PatchResNet(Geometry(grid), **({"width": 8, "depths": (1, 1, 1, 1)} | options)).eval()


@pytest.fixture
def full_size():
    """Builds at the paper's size without allocating anything."""

    def make(grid: Grid, **options) -> PatchResNet:
        with torch.device("meta"):
            return PatchResNet(Geometry(grid), **options)

    return make


# --------------------------------------------------------------------------------- size oracle


def test_stages_have_the_parameters_of_resnet50_v2():
    with torch.device("meta"):
        counts = [
            count(make_stage(number, 64, depth)) for number, depth in enumerate((3, 4, 6, 3), 1)
        ]
    assert counts == [214_912, 1_218_048, 7_095_296, 14_958_592]


@pytest.mark.parametrize(("grid", "expected"), [(SMALL, 8_529_984), (LARGE, 8_537_664)])
def test_p_has_the_parameters_of_stem_and_three_stages(full_size, grid, expected):
    assert count(full_size(grid, closing_norm=False)) == expected
    assert count(full_size(grid, closing_norm=True)) == expected + 2_048


def test_the_backbone_with_1000_classes_is_a_whole_resnet50(full_size):
    with torch.device("meta"):
        backbone = full_size(LARGE).backbone()
        classifier = torch.nn.Linear(backbone.num_features, 1000)
    assert count(backbone) + count(classifier) == 25_549_352


def test_the_default_width_is_1024(full_size):
    assert full_size(SMALL).embed_dim == 1024


# ------------------------------------------------------------------------------------ encoding


def test_a_patch_becomes_a_2x2_map_with_either_stem():
    for grid in (SMALL, LARGE):
        patch = torch.randn(1, 3, grid.patch_size, grid.patch_size)
        encoder = build(grid)
        assert encoder.stages(encoder.stem(patch)).shape == (1, 128, 2, 2)


def test_the_stem_can_be_chosen():
    assert len(build(SMALL).stem) == len(build(LARGE, stem="small").stem) == 1
    assert len(build(LARGE).stem) == len(build(SMALL, stem="imagenet").stem) == 2


def test_it_encodes_the_patches_asked_for():
    grid = Grid(rows=3, cols=5, patch_size=8)
    encoder, image = build(grid), torch.randn(2, 3, 24, 40)
    whole = encoder(image)
    assert whole.patches.shape == (2, 15, 128)
    assert whole.prefix.shape == (2, 0, 128)
    context = torch.tensor([[14, 2], [0, 7]])
    some = encoder(image, context)
    assert torch.equal(some.index, context)
    torch.testing.assert_close(some.patches, take(whole.patches, context))


def test_a_patch_sees_nothing_but_itself():
    encoder, image = build(), torch.randn(2, 3, 32, 32)
    patches = patchify(image, 8).clone()
    patches[0, 5] += 1
    before, after = encoder(image), encoder(unpatchify(patches, SMALL))
    changed = (before.patches - after.patches).abs().amax(dim=-1) > 1e-5
    assert changed.nonzero().tolist() == [[0, 5]]


@pytest.mark.parametrize("closing_norm", [True, False])
def test_every_parameter_gets_a_gradient(closing_norm):
    encoder = build(closing_norm=closing_norm).train()
    encoder(torch.randn(2, 3, 32, 32), CONTEXT).patches.pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_features_are_the_cells_of_the_full_image():
    encoder = build()
    tokens = encoder.features(torch.randn(2, 3, 32, 32))
    assert tokens.patches.shape == (2, 64, 128)
    assert tokens.index[1].tolist() == list(range(64))
    image = torch.randn(1, 3, 32, 32)
    image[:, :, :16, :16] = 0
    away = encoder.features(image).patches
    image[:, :, 31, 31] += 1
    near = encoder.features(image).patches
    assert (away - near).abs().amax(dim=-1)[0, 63] > 1e-4
    assert torch.equal(away[0, 0], near[0, 0])


# ------------------------------------------------------------------------------------ backbone


@pytest.mark.parametrize("closing_norm", [True, False])
def test_the_backbone_starts_from_the_encoder(closing_norm):
    encoder = build(closing_norm=closing_norm).train()
    encoder(torch.randn(4, 3, 32, 32))  # gives batch norm something to remember
    encoder.eval()
    backbone = encoder.backbone().eval()
    image = torch.randn(2, 3, 32, 32)
    raw = encoder.stages(encoder.stem(image))
    assert torch.equal(backbone.stages[:3](backbone.stem(image)), raw)
    assert backbone(image).shape == (2, backbone.num_features) == (2, 256)
    if closing_norm:
        assert torch.equal(backbone.stages[3].blocks[0].norm1(raw), encoder.norm(raw))


def test_the_backbone_is_a_copy_whose_groups_hold_every_parameter_once():
    encoder = build()
    backbone = encoder.backbone()
    groups = backbone.layer_groups()
    grouped = [id(parameter) for group in groups for parameter in group]
    assert len(groups) == 1 + sum(encoder.depths) + 1
    assert sorted(grouped) == sorted(id(parameter) for parameter in backbone.parameters())
    assert not set(grouped) & {id(parameter) for parameter in encoder.parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width: must be a multiple of 8, but is 12"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        build(**options)
