"""The head: sizes, start values, what it predicts from what."""

import pytest
import torch
from mimkit_cae.head import CAEHead

from mimkit import Geometry, Grid, Mask, RecipeError, Tokens, Width

GRID = Grid(3, 5, 4)
SMALL = {"depth_regressor": 2, "depth_decoder": 2, "num_heads": 4, "drop_path": 0.0}
OUTPUTS = {"tokens": Width("class", 32), "latent": Width("vector", 16)}


def build(outputs=OUTPUTS, grid=GRID, **options) -> CAEHead:
    torch.manual_seed(0)
    head = CAEHead(Geometry(grid, embed_dim=16, outputs=outputs), **(SMALL | options))
    with torch.no_grad():
        head.regressor.mask_token.normal_()
    return head.eval()


def example(num_images=2, num_targets=7, grid=GRID) -> tuple[Tokens, Mask]:
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(num_images, grid.num_patches, generator=generator).argsort(1).argsort(1)
    mask = Mask.drop(order < num_targets, grid)
    patches = torch.randn(*mask.context.shape, 16, generator=generator)
    prefix = torch.randn(num_images, 1, 16, generator=generator)
    return Tokens(patches, prefix, mask.context), mask


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --------------------------------------------------------------------------------- size oracle


def test_the_base_model_has_the_published_sizes():
    outputs = {"tokens": Width("class", 8192), "latent": Width("vector", 768)}
    with torch.device("meta"):
        head = CAEHead(Geometry(Grid(14, 14, 16), embed_dim=768, outputs=outputs))
    assert [count(block) for block in head.regressor.blocks] == [7_091_712] * 4
    assert [count(block) for block in head.decoder.blocks] == [7_088_640] * 4
    assert count(head.predictors) == 6_299_648
    assert count(head) - head.regressor.mask_token.numel() == 63_024_128
    assert 85_807_872 - 151_296 + count(head) == 148_681_472


# -------------------------------------------------------------------------------- start values


def test_xavier_is_the_start_of_the_base_model():
    outputs = {"tokens": Width("class", 8192)}
    geometry = Geometry(Grid(2, 2, 16), embed_dim=768, outputs=outputs)
    head = CAEHead(geometry, depth_regressor=1, depth_decoder=1)
    assert head.predictors["tokens"].weight.std().item() == pytest.approx(0.0149, abs=5e-5)
    assert head.decoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.0255, rel=0.01)
    query = head.regressor.blocks[0].cross_attn.q.weight
    assert query.std().item() == pytest.approx((2 / 1536) ** 0.5, rel=0.01)


def test_beits_start_values_shrink_with_the_number_of_the_block():
    geometry = Geometry(Grid(2, 2, 16), embed_dim=768, outputs={"tokens": Width("class", 64)})
    head = CAEHead(geometry, depth_regressor=2, depth_decoder=2, init="beit")
    assert head.predictors["tokens"].weight.std().item() == pytest.approx(0.0108, rel=0.02)
    for number in (1, 2):
        regressor, decoder = head.regressor.blocks[number - 1], head.decoder.blocks[number - 1]
        last = (regressor.cross_attn.proj, regressor.mlp_cross.fc2, decoder.attn.proj)
        for layer in (*last, decoder.mlp.fc2):
            expected = 0.0108 / (2 * number) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.01)


def test_biases_start_at_zero_norms_at_one_and_the_mask_token_within_the_cut():
    geometry = Geometry(GRID, embed_dim=16, outputs=OUTPUTS)
    head = CAEHead(geometry, **SMALL, layer_scale=1e-5)
    for name, value in head.named_parameters():
        if name.endswith("bias"):
            assert value.eq(0).all(), name
        elif "norm" in name:
            assert value.eq(1).all(), name
        elif "gamma" in name:
            assert value.eq(1e-5).all(), name
    assert 0 < head.regressor.mask_token.abs().max() <= 0.02


def test_the_mask_token_is_decayed_as_released():
    assert build().no_weight_decay() == frozenset()


# --------------------------------------------------------------------------------- predictions


def test_it_gives_the_latent_and_what_the_decoder_makes_of_it():
    head, (tokens, mask) = build(), example()
    found = head(tokens, mask)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "latent": (2, 1, 7, 16),
        "tokens": (2, 1, 7, 32),
    }
    places = head.positions[mask.target[:, 0]]
    latent = head.regressor(tokens.patches, head.positions[mask.context], places)
    torch.testing.assert_close(found["latent"][:, 0], latent)
    x = latent + places
    for block in head.decoder.blocks:
        x = block(x)
    logits = head.predictors["tokens"](head.decoder.norm(x))
    torch.testing.assert_close(found["tokens"][:, 0], logits)


def test_without_a_decoder_the_linear_layer_reads_the_latent():
    head, (tokens, mask) = build(depth_decoder=0), example()
    found = head(tokens, mask)
    assert head.decoder is None
    torch.testing.assert_close(found["tokens"], head.predictors["tokens"](found["latent"]))


def test_it_predicts_pixels_as_well_as_classes():
    outputs = {"pixels": Width("vector", 48), "latent": Width("vector", 16)}
    head, (tokens, mask) = build(outputs), example()
    assert head(tokens, mask)["pixels"].shape == (2, 1, 7, 48)


def test_pixels_that_are_as_wide_as_the_encoder_are_decoded_by_their_name():
    head, (tokens, mask) = build({"pixels": Width("vector", 16)}), example()
    other = build({"pixels": Width("vector", 16)}, latent="pixels")
    assert list(head.predictors) == ["pixels"]
    assert other.predictors.keys() == set()
    assert not torch.allclose(head(tokens, mask)["pixels"], other(tokens, mask)["pixels"])
    every = build({"latent": Width("vector", 16)}, latent=None)
    assert list(every.predictors) == ["latent"]


def test_several_predictions_share_one_decoder():
    outputs = {"tokens": Width("class", 32), "pixels": Width("vector", 48)}
    head, (tokens, mask) = build(outputs), example()
    found = head(tokens, mask)
    assert found.keys() == outputs.keys()
    assert [found[name].shape[-1] for name in outputs] == [32, 48]


def test_alignment_alone_has_no_decoder():
    head = build({"latent": Width("vector", 16)})
    assert head.decoder is None
    assert not head.predictors


def test_places_of_visible_and_masked_patches_matter():
    head, (tokens, mask) = build(), example()
    before = head(tokens, mask)["latent"]
    moved = Tokens(tokens.patches, tokens.prefix, tokens.index.flip(1))
    assert (head(moved, mask)["latent"] - before).abs().amax() > 1e-3
    assert (before[:, :, 1:] - before[:, :, :1]).abs().amax(-1).gt(1e-4).all()


def test_the_order_of_visible_patches_does_not():
    head, (tokens, mask) = build(), example()
    turned = Tokens(tokens.patches.flip(1), tokens.prefix, tokens.index.flip(1))
    torch.testing.assert_close(head(turned, mask)["tokens"], head(tokens, mask)["tokens"])


def test_the_class_token_plays_no_part():
    head, (tokens, mask) = build(), example()
    without = Tokens(tokens.patches, tokens.prefix[:, :0], tokens.index)
    assert torch.equal(head(without, mask)["tokens"], head(tokens, mask)["tokens"])


def test_every_visible_patch_reaches_every_prediction():
    head, (tokens, mask) = build(), example()
    before = head(tokens, mask)["tokens"]
    for patch in range(tokens.patches.shape[1]):
        patches = tokens.patches.clone()
        patches[:, patch, ::2] += 1
        other = head(Tokens(patches, tokens.prefix, tokens.index), mask)["tokens"]
        assert (other - before).abs().amax(-1).gt(1e-5).all()


def test_one_image_is_predicted_as_among_others():
    head, (tokens, mask) = build(), example(3)
    one = Tokens(tokens.patches[1:2], tokens.prefix[1:2], tokens.index[1:2])
    alone, among = head(one, mask.rows(1, 2)), head(tokens, mask)
    for name in OUTPUTS:
        torch.testing.assert_close(alone[name], among[name][1:2])


def test_groups_are_predicted_each_on_its_own():
    head, (tokens, mask) = build(), example(num_targets=6)
    groups = mask.target.reshape(2, 2, 3)
    both = Mask(GRID, mask.context, mask.hidden, groups, torch.ones_like(groups, dtype=torch.bool))
    together = head(tokens, both)
    for number in range(2):
        target = groups[:, number : number + 1]
        one = Mask(GRID, mask.context, mask.hidden, target, both.valid[:, :1])
        alone = head(tokens, one)
        for name in OUTPUTS:
            torch.testing.assert_close(together[name][:, number], alone[name][:, 0])


def test_every_parameter_gets_a_gradient():
    head, (tokens, mask) = build().train(), example()
    found = head(tokens, mask)
    (found["tokens"].pow(3).sum() + found["latent"].pow(3).sum()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        # What is added to all keys alike changes no attention.
        assert "norm1_k.bias" in name or parameter.grad.abs().sum() > 0, name


def test_stochastic_depth_starts_anew_in_the_decoder():
    head = build(depth_regressor=3, depth_decoder=2, drop_path=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in head.regressor.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in head.decoder.blocks]
    assert rates == pytest.approx([0, 0.2])


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads: must divide the encoder's width 16, but is 3"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        build(**options)


@pytest.mark.parametrize("width", [Width("vector", 48), Width("class", 16)])
def test_a_latent_that_is_no_vector_of_the_encoders_width_is_refused(width):
    with pytest.raises(RecipeError, match=r"'latent' is the regressor's output, .* vector of 16"):
        build({"latent": width})


def test_padding_would_disturb_it_so_it_takes_none():
    assert CAEHead.ragged is False
