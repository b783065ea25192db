"""Attention pooling and the pointer's queries."""

import pytest
import torch
from mimkit_selfie.encoder import PatchResNet
from mimkit_selfie.head import PointerHead

from mimkit import Geometry, Grid, Mask, RecipeError, Tokens, Width

GRID = Grid(rows=4, cols=4, patch_size=8)


def geometry(grid: Grid = GRID, embed_dim: int = 16, **outputs: Width) -> Geometry:
    outputs = outputs or {"patches": Width("vector", embed_dim)}
    return Geometry(grid, embed_dim=embed_dim, outputs=outputs)


def build(grid: Grid = GRID, **options) -> PointerHead:
    torch.manual_seed(0)
    return PointerHead(geometry(grid), **({"num_heads": 4, "mlp_dim": 8} | options)).eval()


def example(grid: Grid = GRID) -> tuple[Tokens, Mask]:
    torch.manual_seed(1)
    masked = torch.rand(2, grid.num_patches).argsort(1).argsort(1) < 3
    mask = Mask.drop(masked, grid)
    patches = torch.randn(*mask.context.shape, 16)
    return Tokens(patches, patches[:, :0], mask.context), mask


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --------------------------------------------------------------------------------- size oracle


def test_attention_pooling_has_the_published_size():
    with torch.device("meta"):
        pooling = PointerHead(geometry(embed_dim=1024)).attention_pooling
    assert [count(block) for block in pooling.blocks] == [5_514_880] * 3
    assert count(pooling.blocks) == 16_544_640
    assert count(pooling) == 16_544_640 + 1024  # u0


def test_p_and_a_together_have_the_size_of_a_resnet50():
    """P with the 7x7 stem and no closing norm, and the three blocks of A without u0."""
    with torch.device("meta"):
        p = PatchResNet(Geometry(Grid(7, 7, 32)), closing_norm=False)
        a = PointerHead(geometry(embed_dim=1024)).attention_pooling.blocks
    assert count(p) + count(a) == 25_082_304


@pytest.mark.parametrize(
    ("grid", "positions", "vectors"),
    [
        (Grid(4, 4, 8), "auto", 16),
        (Grid(7, 7, 32), "auto", 14),
        (Grid(3, 5, 8), "auto", 8),
        (Grid(4, 4, 8), "decomposed", 8),
        (Grid(7, 7, 32), "location", 49),
    ],
)
def test_positions_are_per_location_up_to_4x4_else_rows_and_columns(grid, positions, vectors):
    assert count(build(grid, positions=positions).positions) == vectors * 16


# --------------------------------------------------------------------------------------- queries


@pytest.mark.parametrize("grid", [GRID, Grid(3, 5, 8)], ids=["location", "decomposed"])
def test_a_query_is_the_summary_plus_the_position(grid):
    head = build(grid)
    tokens, mask = example(grid)
    predictions = head(tokens, mask)
    assert predictions.keys() == {"patches"}
    queries = predictions["patches"]
    assert queries.shape == (2, 1, 3, 16)
    summary = head.attention_pooling(tokens)
    position = head.positions(torch.arange(grid.num_patches))
    assert position.unique(dim=0).shape[0] == grid.num_patches
    expected = summary[1] + position[mask.target[1, 0, 2]]
    torch.testing.assert_close(queries[1, 0, 2], expected)


def test_decomposed_positions_share_rows_and_columns():
    position = build(Grid(5, 6, 8)).positions(torch.arange(30)).view(5, 6, 16)
    right = position[:, 1] - position[:, 0]
    torch.testing.assert_close(right, right[:1].expand(5, -1))
    assert not torch.allclose(position[1, 0] - position[0, 0], position[2, 0] - position[0, 0])


def test_the_start_deviation_of_positions_is_the_options():
    wide = PointerHead(geometry(Grid(4, 4, 8), embed_dim=512), position_std=0.25)
    assert wide.positions.location.std().item() == pytest.approx(0.25, rel=0.03)


def test_every_visible_patch_matters_and_their_order_does_not():
    head = build()
    tokens, mask = example()
    queries = head(tokens, mask)["patches"]
    for patch in range(tokens.patches.shape[1]):
        patches = tokens.patches.clone()
        patches[:, patch] += 1
        other = head(Tokens(patches, tokens.prefix, tokens.index), mask)["patches"]
        assert (other - queries).abs().amax(dim=(1, 2, 3)).gt(1e-4).all()
    turned = Tokens(tokens.patches.flip(1), tokens.prefix, tokens.index.flip(1))
    torch.testing.assert_close(head(turned, mask)["patches"], queries)


@pytest.mark.parametrize("positions_on_context", [True, False])
def test_places_of_the_context_matter_only_if_asked_for(positions_on_context):
    head = build(positions_on_context=positions_on_context)
    tokens, mask = example()
    moved = Tokens(tokens.patches, tokens.prefix, tokens.index.flip(1))
    same = torch.allclose(head(tokens, mask)["patches"], head(moved, mask)["patches"], atol=1e-5)
    assert same == (not positions_on_context)


def test_training_and_evaluation_compute_the_same_without_dropout():
    head = build(dropout=0.0)
    tokens, mask = example()
    evaluated = head(tokens, mask)["patches"]
    with torch.no_grad():
        fast = head(tokens, mask)["patches"]
    trained = head.train()(tokens, mask)["patches"]
    torch.testing.assert_close(evaluated, trained)
    torch.testing.assert_close(fast, trained)


def test_every_parameter_gets_a_gradient():
    head = build(Grid(3, 5, 8), positions_on_context=True)
    tokens, mask = example(Grid(3, 5, 8))
    head(tokens, mask)["patches"].pow(3).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_pooling_is_a_copy_that_takes_the_cells_of_a_full_image():
    head, encoder = build(), PatchResNet(Geometry(GRID), width=8, depths=(1, 1, 1, 1)).eval()
    pooling = head.pooling()
    tokens, _ = example()
    assert torch.equal(pooling(tokens), head.attention_pooling(tokens))
    assert not {id(p) for p in pooling.parameters()} & {id(p) for p in head.parameters()}
    wide = PointerHead(geometry(embed_dim=128), num_heads=4).pooling()
    assert wide(encoder.features(torch.randn(2, 3, 32, 32))).shape == (2, 128)


# -------------------------------------------------------------------------------------- refusals


def test_heads_must_divide_the_width():
    with pytest.raises(RecipeError, match=r"num_heads: must divide .* width 16, but is 3"):
        build(num_heads=3)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"ids": Width("class", 16)}, "'ids' must be a vector of 16, but its target is a class"),
        ({"pixels": Width("vector", 48)}, "is a vector of 48. Use target 'latent'"),
        ({"a": Width("vector", 16), "b": Width("vector", 16)}, "but the losses ask for a, b"),
    ],
)
def test_only_one_vector_of_the_encoders_width_can_be_predicted(outputs, message):
    with pytest.raises(RecipeError, match=message):
        PointerHead(geometry(**outputs), num_heads=4)
