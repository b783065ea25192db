"""The plain vision transformer and its positions."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from mimkit import Geometry, Grid, RecipeError, patchify, unpatchify
from mimkit.builtin.encoders import ViT
from mimkit.builtin.positions import sincos

SQUARE = Grid(rows=4, cols=4, patch_size=4)
CONTEXT = torch.tensor([[0, 3, 7, 12], [1, 2, 8, 15]])
HIDDEN = torch.zeros(2, 16, dtype=torch.bool)
HIDDEN[:, ::3] = True


def vit(grid: Grid = SQUARE, **options) -> ViT:
    torch.manual_seed(0)
    defaults = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return ViT(Geometry(grid), **(defaults | options)).eval()


def noise_at(image: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Replaces whole patches by noise."""
    patches = patchify(image, 4).clone()
    patches[cells] = torch.randn_like(patches[cells])
    return unpatchify(patches, SQUARE)


# ----------------------------------------------------------------------------------- positions


def test_sincos_quarters_are_sin_row_cos_row_sin_col_cos_col():
    table = sincos(Grid(3, 5, 4), 16)
    quarters = table.view(15, 4, 4)
    assert torch.equal(quarters[0], torch.tensor([[0.0], [1.0], [0.0], [1.0]]).expand(4, 4))
    below, beside = quarters[5], quarters[1]
    assert not torch.equal(below[:2], quarters[0][:2])
    assert torch.equal(below[2:], quarters[0][2:])
    assert torch.equal(beside[:2], quarters[0][:2])
    assert not torch.equal(beside[2:], quarters[0][2:])
    assert below[0, 0].item() == pytest.approx(math.sin(1), abs=1e-6)  # 0.8415
    assert below[0, 1].item() == pytest.approx(math.sin(10000 ** (-1 / 4)), abs=1e-6)
    assert beside[3, 3].item() == pytest.approx(math.cos(10000 ** (-3 / 4)), abs=1e-6)


def test_the_class_token_has_no_sincos_position():
    encoder = vit(positions="sincos")
    assert encoder.pos_embed.shape == (1, 17, 16)
    assert encoder.pos_embed[0, 0].eq(0).all()
    assert "pos_embed" not in dict(encoder.named_parameters())


# -------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("class_token", [True, False])
def test_it_encodes_the_patches_asked_for(any_grid, positions, class_token):
    encoder = vit(any_grid, positions=positions, class_token=class_token)
    image = torch.randn(2, 3, *any_grid.image_size)
    context = torch.tensor([[0, 4, 9], [2, 3, 14]])
    tokens = encoder(image, context)
    assert tokens.patches.shape == (2, 3, 16)
    assert tokens.prefix.shape == (2, int(class_token), 16)
    assert torch.equal(tokens.index, context)
    whole = encoder(image)
    assert whole.index.tolist() == [list(range(any_grid.num_patches))] * 2


def test_the_order_of_the_context_is_the_order_of_the_tokens():
    encoder, image = vit(), torch.randn(2, 3, 16, 16)
    tokens, turned = encoder(image, CONTEXT), encoder(image, CONTEXT.flip(1))
    torch.testing.assert_close(turned.patches.flip(1), tokens.patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned.prefix, tokens.prefix, atol=1e-5, rtol=1e-5)


def test_the_whole_grid_as_context_is_the_whole_image():
    encoder, image = vit(mask_token=True), torch.randn(2, 3, 16, 16)
    everything = torch.arange(16).expand(2, -1)
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.equal(encoder(image, everything, nothing).patches, encoder(image).patches)


def test_dropped_patches_have_no_influence():
    encoder, image = vit(), torch.randn(2, 3, 16, 16)
    dropped = torch.ones(2, 16, dtype=torch.bool).scatter(1, CONTEXT, False)
    other = noise_at(image, dropped)
    assert torch.equal(encoder(image, CONTEXT).patches, encoder(other, CONTEXT).patches)
    assert not torch.equal(encoder(image).patches, encoder(other).patches)


def test_hidden_patches_have_no_influence_but_know_their_place():
    encoder, image = vit(mask_token=True, positions="learned"), torch.randn(2, 3, 16, 16)
    everything = torch.arange(16).expand(2, -1)
    tokens = encoder(image, everything, HIDDEN)
    other = encoder(noise_at(image, HIDDEN), everything, HIDDEN)
    assert torch.equal(tokens.patches, other.patches)
    hidden = tokens.patches[0, HIDDEN[0]]
    assert (hidden[:1] - hidden[1:]).abs().amax(dim=1).gt(1e-4).all()


def test_images_do_not_influence_each_other():
    encoder, image = vit(), torch.randn(2, 3, 16, 16)
    both, one = encoder(image).patches[:1], encoder(image[:1]).patches
    torch.testing.assert_close(both, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("mask_token", [True, False])
def test_every_parameter_gets_a_gradient(positions, mask_token):
    encoder = vit(positions=positions, mask_token=mask_token, layer_scale=0.1).train()
    everything = torch.arange(16).expand(2, -1)
    encoder(torch.randn(2, 3, 16, 16), everything, HIDDEN).patches.square().sum().backward()
    assert encoder.takes_hidden == mask_token
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_drop_path_rises_linearly_from_zero():
    encoder = vit(depth=3, drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_it_builds_without_allocating_anything(positions):
    with torch.device("meta"):
        encoder = vit(positions=positions, embed_dim=768, depth=12, num_heads=12)
    assert {tensor.device.type for tensor in encoder.state_dict().values()} == {"meta"}


def test_drop_path_acts_in_training_only():
    encoder, image = vit(drop_path=0.9), torch.randn(2, 3, 16, 16)
    assert torch.equal(encoder(image).patches, encoder(image).patches)
    encoder.train()
    assert not torch.equal(encoder(image).patches, encoder(image).patches)


def test_it_is_timms_vision_transformer_by_name_and_by_value():
    theirs = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0
    ).eval()
    encoder, image = vit(positions="learned"), torch.randn(2, 3, 16, 16)
    theirs.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        expected = theirs.forward_features(image)
        tokens = encoder(image)
    torch.testing.assert_close(torch.cat([tokens.prefix, tokens.patches], 1), expected)


# -------------------------------------------------------------------------------------- backbone


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_backbone_pools_the_same_tokens(pool):
    encoder, image = vit(pool=pool, mask_token=True), torch.randn(2, 3, 16, 16)
    backbone = encoder.backbone()
    tokens = encoder.features(image)
    expected = tokens.prefix[:, 0] if pool == "cls" else tokens.patches.mean(1)
    assert backbone.num_features == 16
    assert torch.equal(backbone(image), expected)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_the_backbone_is_a_copy_whose_groups_hold_every_parameter_once(positions):
    encoder = vit(positions=positions, mask_token=True)
    backbone = encoder.backbone()
    grouped = [parameter for group in backbone.layer_groups() for parameter in group]
    assert len(backbone.layer_groups()) == 1 + 2 + 1
    assert {id(p) for p in grouped} == {id(p) for p in backbone.parameters()}
    assert len(grouped) == len(list(backbone.parameters()))
    assert not {id(p) for p in grouped} & {id(p) for p in encoder.parameters()}
    assert encoder.mask_token is not None
    assert not any("mask_token" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("part", ["encoder", "backbone"])
def test_only_parameters_that_exist_are_spared_weight_decay(part):
    encoder = vit(positions="learned", mask_token=part == "encoder")
    module = encoder if part == "encoder" else encoder.backbone()
    spared = module.no_weight_decay() & dict(module.named_parameters()).keys()
    assert {name.split(".")[-1] for name in spared} >= {"pos_embed", "cls_token"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads: must divide embed_dim = 16, but is 3"),
        ({"embed_dim": 18}, "embed_dim must be divisible by 4, but is 18"),
        ({"pool": "cls", "class_token": False}, "'cls' needs class_token = true"),
        ({"pool": "cls", "final_norm": "pooled"}, "must be 'mean' with final_norm = 'pooled'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        vit(**options)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_the_backbone_moves_to_another_grid(positions):
    encoder = vit(positions=positions, mask_token=True)
    backbone = encoder.backbone(Grid(6, 5, 4))
    assert backbone(torch.randn(2, 3, 24, 20)).shape == (2, 16)
    same = encoder.backbone(Grid(4, 4, 4))
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(same(image), encoder.backbone()(image))
    # The encoder itself stays where it was.
    assert encoder(image).patches.shape == (2, 16, 16)


def test_fixed_positions_of_another_grid_are_those_of_an_encoder_made_for_it():
    other = ViT(Geometry(Grid(6, 5, 4)), embed_dim=16, depth=2, num_heads=2).eval()
    encoder = vit()
    other.load_state_dict({**encoder.state_dict(), "pos_embed": other.pos_embed})
    image = torch.randn(2, 3, 24, 20)
    torch.testing.assert_close(encoder.backbone(Grid(6, 5, 4))(image), other(image).patches.mean(1))


def test_a_grid_of_other_patches_is_refused():
    with pytest.raises(RecipeError, match="must be 4 px, but are 8 px"):
        vit().backbone(Grid(4, 4, 8))


def test_stochastic_depth_of_the_backbone_is_set_from_first_to_last_block():
    backbone = vit(depth=3).backbone()
    backbone.set_drop_path(0.2)
    rates = [block.drop_path1.drop_prob for block in backbone.vit.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_layers_are_the_outputs_of_the_blocks_and_end_in_the_features():
    encoder, image = vit(depth=3), torch.randn(2, 3, 16, 16)
    layers = encoder.layers(image)
    assert len(layers) == 3
    assert torch.equal(layers[-1].patches, encoder.features(image).patches)
    entering = torch.cat([layers[0].prefix, layers[0].patches], 1)
    leaving = torch.cat([layers[1].prefix, layers[1].patches], 1)
    assert torch.equal(encoder.blocks[1](entering), leaving)


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "learned"},
        {"class_token": False, "layer_scale": 0.1},
        {"pool": "cls", "mask_token": True},
    ],
)
def test_timm_loads_the_export_strictly_and_computes_the_same(options):
    encoder, image = vit(**options), torch.randn(2, 3, 16, 16)
    exported = encoder.timm_model()
    theirs = timm.create_model(exported.model, **exported.options).eval()
    theirs.load_state_dict(dict(exported.tensors), strict=True)
    torch.testing.assert_close(theirs(image), encoder.backbone()(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"positions": "learned"}, {"class_token": False}])
def test_attention_is_that_of_timms_last_block(options):
    encoder, image = vit(depth=3, **options), torch.randn(2, 3, 16, 16)
    torch.nn.init.normal_(encoder.blocks[-1].attn.qkv.weight)  # so that attention is not even
    exported = encoder.timm_model()
    theirs = VisionTransformer(**exported.options).eval()
    theirs.load_state_dict(dict(exported.tensors), strict=True)
    last, seen = theirs.blocks[-1].attn, []
    last.fused_attn = False
    last.attn_drop.register_forward_hook(lambda module, args, weights: seen.append(weights))
    theirs(image)
    weights = seen[0].mean(dim=1)
    expected = weights[:, 0, 1:] if encoder.num_prefix else weights.mean(dim=1)
    found = encoder.attention(image)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    assert found.std() > 1e-2


# ------------------------------------------------------------------------------- imported forms


def test_the_columns_waves_may_come_first():
    rows, cols = (vit(positions=kind).pos_embed for kind in ("sincos", "sincos_cols"))
    assert torch.equal(cols, torch.cat([rows[..., 8:], rows[..., :8]], dim=-1))
    moved = vit(positions="sincos_cols").backbone(Grid(3, 5, 4)).vit
    assert torch.equal(moved.pos_embed, vit(Grid(3, 5, 4), positions="sincos_cols").pos_embed)


def test_a_norm_behind_the_pooling_is_trained_by_the_backbone_alone():
    encoder = vit(final_norm="pooled")
    assert not any(parameter.requires_grad for parameter in encoder.norm.parameters())
    backbone = encoder.backbone()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    grouped = [parameter for group in backbone.layer_groups() for parameter in group]
    assert {id(p) for p in grouped} == {id(p) for p in backbone.parameters()}
    image = torch.randn(2, 3, 16, 16)
    mean = encoder.features(image).patches.mean(dim=1)
    assert torch.equal(backbone(image), encoder.norm(mean))
    assert torch.equal(encoder.layers(image)[-1].patches, encoder.features(image).patches)
