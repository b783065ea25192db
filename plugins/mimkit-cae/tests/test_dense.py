"""The maps that CAE gives to dense tasks, against timm's."""

import pytest
import timm
import torch
from mimkit_cae.encoder import CAEViT

from mimkit import BoundaryError, Geometry, Grid, Level, RecipeError, dense_blocks

SQUARE, OBLONG = Grid(4, 4, 4), Grid(3, 5, 4)


def cae(grid=SQUARE, **options):
    """A small encoder without any parameter that is 0 or 1 throughout."""
    torch.manual_seed(0)
    encoder = CAEViT(Geometry(grid), embed_dim=16, depth=6, num_heads=2, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def images(grid, batch_size=2):
    return torch.randn(batch_size, 3, *grid.image_size, generator=torch.Generator().manual_seed(1))


def timms(encoder):
    """timm's model with the encoder's weights."""
    described = encoder.timm_model()
    model = timm.create_model(described.model, **described.options).eval()
    model.load_state_dict(dict(described.tensors))
    return model


@pytest.mark.parametrize("grid", [SQUARE, OBLONG])
def test_maps_are_those_of_timm(grid):
    encoder, image = cae(grid), images(grid)
    dense = encoder.dense().eval()
    assert dense.levels == (Level(16, 4),) * 4
    with torch.no_grad():
        last, expected = timms(encoder).forward_intermediates(
            image, indices=list(dense_blocks(6)), output_fmt="NCHW"
        )
        for one, other in zip(dense(image), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        found = dense.features(image)
    patches = last[:, 1:].mT.unflatten(2, (grid.rows, grid.cols))
    torch.testing.assert_close(found, patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.flatten(2).mT, encoder.features(image).patches)


def test_on_another_grid_it_is_an_encoder_of_that_grid():
    """Fixed positions are all that depends on the grid, as the new tables are zero."""
    encoder, grid = cae(), Grid(3, 7, 4)
    there = cae(grid)
    own = {k: v for k, v in encoder.state_dict().items() if k != "pos_embed"}
    there.load_state_dict(there.state_dict() | own)
    with torch.no_grad():
        found, expected = encoder.dense(grid).eval()(images(grid)), there.layers(images(grid))
    for number, one in zip(dense_blocks(6)[:3], found[:3], strict=True):
        torch.testing.assert_close(
            one.flatten(2).mT, expected[number].patches, atol=1e-5, rtol=1e-5
        )
    assert found[3].shape == (2, 16, 3, 7)


def test_relative_positions_start_at_zero_and_learn_as_in_fine_tuning():
    encoder, grid = cae(), Grid(3, 7, 4)
    dense, tuned = encoder.dense(grid).train(), encoder.backbone(grid)
    own, other = dense.vit.state_dict(), tuned.vit.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    tables = [block.attn.relative_position_bias_table for block in dense.vit.blocks]
    assert [tuple(table.shape) for table in tables] == [(5 * 13 + 3, 2)] * 6
    assert all(table.eq(0).all() for table in tables)
    sum(each.pow(3).sum() for each in dense(images(grid))).backward()
    assert all(table.grad.abs().sum() > 0 for table in tables)
    assert dense.no_weight_decay() == {"vit.cls_token"}


def test_groups_hold_what_is_trained_and_nothing_of_the_encoder():
    encoder = cae()
    dense = encoder.dense()
    groups = dense.layer_groups()
    grouped = [id(parameter) for group in groups for parameter in group]
    trained = {name: p for name, p in dense.named_parameters() if p.requires_grad}
    assert len(groups) == 1 + 6 + 1
    assert sorted(grouped) == sorted(map(id, trained.values()))
    assert {n for n, _ in dense.named_parameters()} - trained.keys() == {"norm.weight", "norm.bias"}
    storages = {parameter.data_ptr() for parameter in encoder.parameters()}
    assert not storages & {parameter.data_ptr() for parameter in dense.parameters()}
    assert encoder.norm.weight.requires_grad


def test_layer_scale_is_kept():
    encoder = cae(layer_scale=0.3)
    blocks = encoder.dense().vit.blocks
    for one, other in zip(blocks, encoder.blocks, strict=True):
        assert torch.equal(one.gamma_1, other.gamma_1)
        assert torch.equal(one.gamma_2, other.gamma_2)


def test_what_does_not_fit_is_told():
    with pytest.raises(RecipeError, match="must be 4 px, but are 8 px"):
        cae().dense(Grid(4, 4, 8))
    with pytest.raises(BoundaryError, match=r"CAEViT was made for images of 8 x 32 px"):
        cae(Grid(2, 8, 4)).dense()(images(SQUARE))
