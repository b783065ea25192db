"""What fine-tuning starts from."""

import pytest
import torch
import torch.nn.functional as F
from mimkit_cae.encoder import CAEViT

from mimkit import Geometry, Grid, RecipeError

GRID = Grid(3, 5, 4)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = CAEViT(Geometry(GRID), embed_dim=16, depth=2, num_heads=4)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, *GRID.image_size, generator=torch.Generator().manual_seed(1))


def unnormalised(encoder, image):
    layers = torch.cat([encoder.layers(image)[-2].prefix, encoder.layers(image)[-2].patches], 1)
    return encoder.blocks[-1](layers)[:, 1:]


def test_it_starts_as_the_encoder_with_its_norm_behind_the_mean(encoder, image):
    backbone = encoder.backbone().eval()
    mean = unnormalised(encoder, image).mean(dim=1)
    expected = F.layer_norm(mean, (16,), encoder.norm.weight, encoder.norm.bias, 1e-6)
    assert backbone.num_features == 16
    torch.testing.assert_close(backbone(image), expected, atol=1e-5, rtol=1e-5)


def test_relative_positions_start_at_zero_and_learn(encoder, image):
    backbone = encoder.backbone().eval()
    tables = [block.attn.relative_position_bias_table for block in backbone.vit.blocks]
    assert [tuple(table.shape) for table in tables] == [(5 * 9 + 3, 4)] * 2
    assert all(table.eq(0).all() for table in tables)
    before = backbone(image)
    before.pow(2).sum().backward()
    assert all(table.grad.abs().sum() > 0 for table in tables)
    with torch.no_grad():
        tables[0].normal_()
    assert not torch.allclose(backbone(image), before, atol=1e-3)


def test_it_is_a_copy_whose_groups_hold_every_parameter_once(encoder):
    backbone = encoder.backbone()
    groups = backbone.layer_groups()
    grouped = [id(parameter) for group in groups for parameter in group]
    assert len(groups) == 1 + 2 + 1
    assert sorted(grouped) == sorted(id(parameter) for parameter in backbone.parameters())
    assert not set(grouped) & {id(parameter) for parameter in encoder.parameters()}
    assert any(parameter is backbone.vit.cls_token for parameter in groups[0])
    assert any(parameter is backbone.fc_norm.weight for parameter in groups[-1])


def test_the_encoder_and_the_random_state_stay_as_they_were(encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.no_grad():
        for parameter in encoder.backbone(Grid(6, 5, 4)).parameters():
            parameter.add_(1)
    assert torch.equal(state, torch.random.get_rng_state())
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_on_another_grid_positions_are_made_anew(encoder):
    larger = Grid(4, 6, 4)
    backbone = encoder.backbone(larger).eval()
    expected = CAEViT(Geometry(larger), embed_dim=16, depth=1, num_heads=4).pos_embed
    assert torch.equal(backbone.vit.pos_embed, expected)
    assert backbone(torch.randn(2, 3, *larger.image_size)).shape == (2, 16)
    assert len(backbone.vit.blocks[0].attn.relative_position_bias_table) == 7 * 11 + 3


def test_patches_of_another_size_are_refused(encoder):
    with pytest.raises(RecipeError, match="must be 4 px, but are 8 px"):
        encoder.backbone(Grid(3, 5, 8))


def test_stochastic_depth_can_be_set_anew(encoder):
    backbone = encoder.backbone()
    backbone.set_drop_path(0.4)
    rates = [
        (block.drop_path1.drop_prob, block.drop_path2.drop_prob) for block in backbone.vit.blocks
    ]
    assert rates == [(0.0, 0.0), (0.4, 0.4)]


def test_fine_tuning_spares_the_class_token_but_decays_tables(encoder):
    exempt = encoder.backbone().no_weight_decay()
    assert exempt == {"vit.cls_token"}
    assert exempt <= dict(encoder.backbone().named_parameters()).keys()
