"""MAE's decoder: what it reads, what it cannot see, its size and start values."""

import pytest
import torch
from mimkit_mae.decoder import MAEDecoder

from mimkit import Geometry, Grid, Mask, RecipeError, Tokens, Width, sincos

GRID = Grid(rows=3, cols=5, patch_size=4)
WIDTH = 16


def geometry(grid: Grid = GRID, embed_dim: int = WIDTH, **outputs: Width) -> Geometry:
    outputs = outputs or {"pixels": Width("vector", 48)}
    return Geometry(grid, embed_dim=embed_dim, outputs=outputs)


def build(grid: Grid = GRID, outputs: dict[str, Width] | None = None, **options) -> MAEDecoder:
    torch.manual_seed(0)
    small = {"embed_dim": 24, "depth": 2, "num_heads": 3}
    return MAEDecoder(geometry(grid, **(outputs or {})), **(small | options))


def example(grid: Grid = GRID, prefix: int = 1, num_masked: int = 9) -> tuple[Tokens, Mask]:
    torch.manual_seed(1)
    masked = torch.rand(2, grid.num_patches).argsort(1).argsort(1) < num_masked
    mask = Mask.drop(masked, grid)
    tokens = torch.randn(2, prefix + grid.num_patches - num_masked, WIDTH)
    return Tokens(tokens[:, prefix:], tokens[:, :prefix], mask.context), mask


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------------------- size, start values


def test_the_published_base_decoder_has_its_size():
    with torch.device("meta"):
        head = MAEDecoder(geometry(Grid(14, 14, 16), 768, pixels=Width("vector", 768)))
    assert count(head.embed) == 768 * 512 + 512
    attention = (512 * 3 * 512 + 3 * 512) + (512 * 512 + 512)
    mlp = (512 * 2048 + 2048) + (2048 * 512 + 512)
    assert [count(block) for block in head.blocks] == [attention + mlp + 2 * 2 * 512] * 8
    assert count(head.predictors) == 512 * 768 + 768
    assert count(head) == 26_008_320
    vit_base, positions = 85_647_360, 197 * (768 + 512)
    assert vit_base + count(head) + positions == 111_907_840  # as the released model counts


def test_start_values_are_the_published_ones():
    torch.manual_seed(0)
    head = MAEDecoder(geometry(embed_dim=192), embed_dim=512, depth=1)
    assert head.mask_token.std().item() == pytest.approx(0.02, rel=0.15)
    linears = [module for module in head.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 1 + 4 + 1
    for linear in linears:
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() == 0
    norms = [module for module in head.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-6] * 3


def test_positions_are_fixed_sines_and_cosines_of_the_decoders_width():
    head = build()
    torch.testing.assert_close(head.positions, sincos(GRID, 24))
    assert "positions" not in dict(head.named_parameters())


# ----------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("grid", [Grid(4, 4, 4), GRID], ids=["square", "3x5"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_every_output_is_predicted_at_every_target(grid, prefix):
    head = build(grid, {"pixels": Width("vector", 48), "ids": Width("class", 7)})
    predictions = head(*example(grid, prefix))
    shapes = {name: tuple(value.shape) for name, value in predictions.items()}
    assert shapes == {"pixels": (2, 1, 9, 48), "ids": (2, 1, 9, 7)}


def test_every_visible_patch_and_the_class_token_reach_every_prediction():
    head = build().eval()
    tokens, mask = example()
    before = head(tokens, mask)["pixels"]
    for number in range(1 + tokens.patches.shape[1]):
        both = torch.cat([tokens.prefix, tokens.patches], dim=1)
        both[:, number] += 1
        after = head(Tokens(both[:, 1:], both[:, :1], tokens.index), mask)["pixels"]
        assert (after - before).abs().amax(dim=-1).gt(1e-6).all()


def test_the_order_of_the_visible_patches_does_not_matter_but_their_places_do():
    head = build().eval()
    tokens, mask = example()
    before = head(tokens, mask)["pixels"]
    same = Tokens(tokens.patches.flip(1), tokens.prefix, tokens.index.flip(1))
    torch.testing.assert_close(head(same, mask)["pixels"], before)
    moved = Tokens(tokens.patches, tokens.prefix, tokens.index.flip(1))
    assert not torch.allclose(head(moved, mask)["pixels"], before, atol=1e-3)


def test_targets_are_told_apart_by_their_places_and_read_in_their_order():
    head = build().eval()
    tokens, mask = example()
    before = head(tokens, mask)["pixels"]
    assert not torch.allclose(before[:, :, 0], before[:, :, 1], atol=1e-3)
    order = Mask(GRID, mask.context, mask.hidden, mask.target.flip(2), mask.valid)
    torch.testing.assert_close(head(tokens, order)["pixels"], before.flip(2))


def test_a_position_that_is_neither_seen_nor_a_target_is_a_mask_token():
    head = build().eval()
    tokens, mask = example()
    fewer = Mask(GRID, mask.context, mask.hidden, mask.target[..., :4], mask.valid[..., :4])
    torch.testing.assert_close(
        head(tokens, fewer)["pixels"], head(tokens, mask)["pixels"][:, :, :4]
    )


def test_a_padded_target_changes_no_other():
    head = build().eval()
    masked = torch.zeros(2, 15, dtype=torch.bool)
    masked[0, [1, 4, 9]] = True
    masked[1, [2, 3]] = True
    exact, padded = Mask.replace(masked[1:], GRID), Mask.replace(masked, GRID)
    torch.manual_seed(1)
    patches = torch.randn(2, 15, WIDTH)
    both = head(Tokens(patches, patches[:, :1], padded.context), padded)["pixels"]
    alone = head(Tokens(patches[1:], patches[1:, :1], exact.context), exact)["pixels"]
    torch.testing.assert_close(both[1:, :, :2], alone)


def test_every_parameter_gets_a_gradient():
    head = build(outputs={"pixels": Width("vector", 48), "ids": Width("class", 7)})
    sum(value.pow(3).sum() for value in head(*example()).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_half_precision_gives_nearly_the_same():
    head = build().eval()
    tokens, mask = example()
    with torch.autocast("cpu", torch.bfloat16):
        half = head(tokens, mask)["pixels"]
    torch.testing.assert_close(half.float(), head(tokens, mask)["pixels"], atol=0.05, rtol=0.05)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 30}, "embed_dim: must be a multiple of 4"),
        ({"num_heads": 5}, "num_heads: must divide embed_dim = 24, but is 5"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        build(**options)
