"""The encoder: sizes, positions, start values, what enters, what leaves for timm."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from mimkit_cae.encoder import CAEViT
from timm.models.vision_transformer import VisionTransformer

from mimkit import Geometry, Grid, RecipeError, patchify, unpatchify

GRID = Grid(3, 5, 4)
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 4, "drop_path": 0.0}


def build(grid=GRID, **options) -> CAEViT:
    torch.manual_seed(0)
    return CAEViT(Geometry(grid), **(SMALL | options))


@pytest.fixture
def encoder():
    return build().eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, *GRID.image_size, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------- size oracle


def test_the_base_model_has_the_published_size():
    with torch.device("meta"):
        encoder = CAEViT(Geometry(Grid(14, 14, 16)))
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    assert encoder.pos_embed.numel() == 151_296
    assert parameters + encoder.pos_embed.numel() == 85_807_872
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("layer_scale", [None, 0.0])
def test_without_layer_scale_there_are_no_factors(layer_scale):
    assert not [name for name in build(layer_scale=layer_scale).state_dict() if "gamma" in name]


# ----------------------------------------------------------------------------------- positions


def test_positions_are_sine_and_cosine_of_the_row_then_of_the_column():
    table = build(Grid(14, 14, 4)).pos_embed[0]
    quarter = torch.full((4,), 1.0)
    assert table[0].eq(0).all()  # the class token stands nowhere
    torch.testing.assert_close(table[1], torch.cat([0 * quarter, quarter, 0 * quarter, quarter]))
    below, right = table[1 + 14], table[2]
    assert below[0].item() == pytest.approx(math.sin(1))
    assert torch.equal(below[8:], table[1][8:])
    assert torch.equal(right[:8], table[1][:8])
    frequencies = 10000.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(below[:4], frequencies.sin())
    torch.testing.assert_close(right[12:], frequencies.cos())


def test_positions_are_stored_but_not_trained():
    encoder = build()
    assert "pos_embed" in encoder.state_dict()
    assert "pos_embed" not in dict(encoder.named_parameters())


# --------------------------------------------------------------------------------- start values


def test_xavier_takes_the_joint_projection_as_one_matrix():
    encoder = CAEViT(Geometry(Grid(2, 2, 16)), depth=1)
    block = encoder.blocks[0]
    assert block.attn.qkv.weight.std().item() == pytest.approx(0.0255, rel=0.01)
    assert block.mlp.fc2.weight.std().item() == pytest.approx((2 / 3840) ** 0.5, rel=0.01)
    assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.0108, rel=0.01)


def test_beits_start_values_shrink_with_the_number_of_the_block():
    encoder = CAEViT(Geometry(Grid(2, 2, 16)), depth=3, init="beit")
    assert encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.0108, rel=0.01)
    for number, block in enumerate(encoder.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.0108 / (2 * number) ** 0.5, rel=0.01)


@pytest.mark.parametrize("init", ["xavier", "beit"])
def test_biases_start_at_zero_norms_at_one_and_tokens_within_the_cut(init):
    encoder = build(init=init, layer_scale=1e-5)
    for name, value in encoder.named_parameters():
        if name.endswith("bias"):
            assert value.eq(0).all(), name
        elif "norm" in name:
            assert value.eq(1).all(), name
        elif "gamma" in name:
            assert value.eq(1e-5).all(), name
    assert 0 < encoder.cls_token.abs().max() <= 0.02
    assert 0 < encoder.patch_embed.proj.weight.abs().max() <= 0.02


def test_the_class_token_is_decayed_as_released():
    assert build().no_weight_decay() == frozenset()


# ------------------------------------------------------------------------------------- encoding


def test_patches_are_projected_as_by_a_convolution(encoder, image):
    expected = encoder.patch_embed.proj(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(image, None), expected)


def test_a_part_of_the_grid_is_encoded_as_that_part_alone(encoder, image):
    """Against the blocks themselves, with positions looked up one by one."""
    context = torch.tensor([[14, 2, 7], [0, 3, 9]])
    tokens = encoder(image, context)
    assert torch.equal(tokens.index, context)
    assert tokens.prefix.shape == (2, 1, 16)
    embedded = encoder.patch_embed.proj(image).flatten(2).transpose(1, 2)
    for number in range(2):
        rows = [embedded[number, p] + encoder.pos_embed[0, 1 + p] for p in context[number].tolist()]
        x = torch.stack([encoder.cls_token[0, 0], *rows])[None]
        for block in encoder.blocks:
            x = block(x)
        expected = F.layer_norm(x, (16,), eps=1e-6)[0]
        torch.testing.assert_close(tokens.patches[number], expected[1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokens.prefix[number], expected[:1], atol=1e-5, rtol=1e-5)


def test_all_positions_are_the_whole_image(encoder, image):
    order = torch.arange(15).flip(0).expand(2, -1)
    whole, some = encoder(image), encoder(image, order)
    assert whole.index.tolist() == [list(range(15))] * 2
    torch.testing.assert_close(some.patches.flip(1), whole.patches)
    torch.testing.assert_close(some.prefix, whole.prefix)


def test_one_image_is_encoded_as_among_others(encoder, image):
    torch.testing.assert_close(encoder(image[1:]).patches, encoder(image).patches[1:])


def test_what_does_not_enter_is_not_seen(encoder, image):
    context = torch.tensor([[1, 4, 8], [14, 3, 0]])
    patches = patchify(image, 4).clone()
    outside = torch.ones(2, 15, dtype=torch.bool).scatter(1, context, False)
    patches[outside] += 1
    before, after = encoder(image, context), encoder(unpatchify(patches, GRID), context)
    assert torch.equal(before.patches, after.patches)
    assert torch.equal(before.prefix, after.prefix)


def test_the_last_layer_is_the_features_and_the_others_are_not_normalised(encoder, image):
    layers = encoder.layers(image)
    assert len(layers) == 2
    assert torch.equal(layers[-1].patches, encoder.features(image).patches)
    assert torch.equal(layers[-1].prefix, encoder.features(image).prefix)
    first = torch.cat([layers[0].prefix, layers[0].patches], dim=1)
    torch.testing.assert_close(
        encoder.norm(encoder.blocks[1](first))[:, 1:], layers[-1].patches, atol=1e-5, rtol=1e-5
    )


def test_every_parameter_gets_a_gradient(image):
    encoder = build()
    tokens = encoder(image, torch.tensor([[1, 4, 8], [14, 3, 0]]))
    tokens.patches.pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_stochastic_depth_rises_from_zero_and_only_in_training(image):
    encoder = build(depth=3, drop_path=0.8)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0, 0.4, 0.8])
    assert not torch.equal(encoder(image).patches, encoder(image).patches)
    encoder.eval()
    assert torch.equal(encoder(image).patches, encoder(image).patches)


# ----------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("layer_scale", [0.1, None])
def test_timm_computes_the_same_features(image, layer_scale):
    encoder = build(layer_scale=layer_scale, mlp_ratio=2.0).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    exported = encoder.timm_model()
    theirs = timm.create_model(exported.model, **exported.options).eval()
    theirs.load_state_dict(dict(exported.tensors), strict=True)
    tokens = encoder.features(image)
    ours = torch.cat([tokens.prefix, tokens.patches], dim=1)
    torch.testing.assert_close(theirs.forward_features(image), ours, atol=1e-5, rtol=1e-5)
    pooled = tokens.patches.mean(dim=1)
    torch.testing.assert_close(theirs(image), pooled, atol=1e-5, rtol=1e-5)


def test_attention_is_that_of_timms_last_block(encoder, image):
    torch.nn.init.normal_(encoder.blocks[-1].attn.q_bias)
    torch.nn.init.normal_(encoder.blocks[-1].attn.qkv.weight)  # so that attention is not even
    exported = encoder.timm_model()
    theirs = VisionTransformer(**exported.options).eval()
    theirs.load_state_dict(dict(exported.tensors), strict=True)
    last, seen = theirs.blocks[-1].attn, []
    last.fused_attn = False
    last.attn_drop.register_forward_hook(lambda module, args, weights: seen.append(weights))
    theirs(image)
    expected = seen[0].mean(dim=1)[:, 0, 1:]
    found = encoder.attention(image)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    assert found.std() > 1e-2


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads: must divide embed_dim = 16, but is 3"),
        ({"embed_dim": 18, "num_heads": 3}, "must be a multiple of 4 .* but is 18"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        build(**options)


def test_it_takes_no_mask_tokens():
    assert CAEViT.takes_hidden is False


@pytest.mark.slow
def test_it_compiles_without_a_break(image):
    encoder, context = build().eval(), torch.tensor([[1, 4, 8], [14, 3, 0]])
    compiled = torch.compile(encoder, fullgraph=True)
    torch.testing.assert_close(compiled(image, context).patches, encoder(image, context).patches)
