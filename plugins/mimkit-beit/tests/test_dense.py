"""The maps that BEiT gives to dense tasks, against timm's."""

import pytest
import timm
import torch
import torch.nn.functional as F
from mimkit_beit.encoder import BEiTViT

from mimkit import BoundaryError, Geometry, Grid, Level, RecipeError, dense_blocks

SQUARE, OBLONG = Grid(4, 4, 4), Grid(3, 5, 4)
POSITIONS = ["absolute", "relative", "relative_per_block"]
TABLE = "attn.relative_position_bias_table"


def beit(grid=SQUARE, **options):
    """A small encoder without any parameter that is 0 or 1 throughout."""
    torch.manual_seed(0)
    defaults = {"embed_dim": 16, "depth": 6, "num_heads": 2, "layer_scale": 0.1}
    encoder = BEiTViT(Geometry(grid), **(defaults | options)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def images(grid, batch_size=2):
    return torch.randn(batch_size, 3, *grid.image_size, generator=torch.Generator().manual_seed(1))


def timms_maps(encoder, image):
    """The maps of timm's model with the encoder's weights."""
    described = encoder.timm_model()
    model = timm.create_model(described.model, **described.options).eval()
    lacking, unknown = model.load_state_dict(dict(described.tensors), strict=False)
    assert not unknown
    assert not [name for name in lacking if "norm." not in name]  # which no map passes
    return model.forward_intermediates(
        image, indices=list(dense_blocks(6)), intermediates_only=True, output_fmt="NCHW"
    )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", [SQUARE, OBLONG])
def test_maps_are_those_of_timm(positions, grid):
    encoder, image = beit(grid, positions=positions), images(grid)
    dense = encoder.dense().eval()
    assert dense.levels == (Level(16, 4),) * 4
    with torch.no_grad():
        for one, other in zip(dense(image), timms_maps(encoder, image), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
def test_features_are_the_encoders_patches_in_their_places(positions, final_norm):
    encoder, image = beit(OBLONG, positions=positions, final_norm=final_norm), images(OBLONG)
    with torch.no_grad():
        found, patches = encoder.dense().eval().features(image), encoder.features(image).patches
    torch.testing.assert_close(found.flatten(2).mT, patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :, 1, 4], patches[:, 9], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("source", "grid"), [(SQUARE, Grid(6, 8, 4)), (OBLONG, Grid(2, 7, 4))])
def test_on_another_grid_positions_are_those_of_fine_tuning(positions, source, grid):
    encoder, image = beit(source, positions=positions), images(grid)
    dense, tuned = encoder.dense(grid).eval(), encoder.backbone(grid)
    own, other = dense.vit.state_dict(), tuned.vit.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    with torch.no_grad():
        maps = dense(image)
        for one, two in zip(maps, timms_maps(dense.vit, image), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert maps[0].shape == (2, 16, grid.rows, grid.cols)
    if positions == "absolute":
        cells = encoder.pos_embed[0, 1:].T.reshape(1, 16, source.rows, source.cols)
        expected = F.interpolate(cells, (grid.rows, grid.cols), mode="bicubic")
        torch.testing.assert_close(dense.vit.pos_embed[0, 1:].T, expected[0].flatten(1))


@pytest.mark.parametrize("positions", POSITIONS)
def test_groups_hold_what_is_trained_and_nothing_of_the_encoder(positions):
    encoder = beit(positions=positions)
    dense = encoder.dense().train()
    groups = dense.layer_groups()
    grouped = [id(parameter) for group in groups for parameter in group]
    trained = {name: p for name, p in dense.named_parameters() if p.requires_grad}
    assert len(groups) == 1 + 6 + 1
    assert sorted(grouped) == sorted(map(id, trained.values()))
    assert {n for n, _ in dense.named_parameters()} - trained.keys() == {"norm.weight", "norm.bias"}
    storages = {parameter.data_ptr() for parameter in encoder.parameters()}
    assert not storages & {parameter.data_ptr() for parameter in dense.parameters()}
    sum(each.pow(3).sum() for each in dense(images(SQUARE))).backward()
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert encoder.norm.weight.requires_grad


def test_what_does_not_fit_is_told():
    with pytest.raises(RecipeError, match="must be 4 px, but are 8 px"):
        beit().dense(Grid(4, 4, 8))
    with pytest.raises(BoundaryError, match=r"BEiTViT was made for images of 8 x 32 px"):
        beit(Grid(2, 8, 4)).dense()(images(SQUARE))
