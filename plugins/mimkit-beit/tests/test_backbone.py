"""BEiT's fine-tuning network, and positions on another grid."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mimkit_beit.encoder import BEiTViT
from mimkit_beit.positions import resample_relative, source_offsets

from mimkit import Geometry, Grid, RecipeError

SQUARE, OBLONG = Grid(4, 4, 4), Grid(3, 5, 4)
POSITIONS = ["absolute", "relative", "relative_per_block"]
TABLE = "attn.relative_position_bias_table"


def beit(grid: Grid = SQUARE, **options) -> BEiTViT:
    """A small encoder without any parameter that is 0 or 1 throughout."""
    torch.manual_seed(0)
    defaults = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    encoder = BEiTViT(Geometry(grid), **(defaults | options)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def layer_norm(x: torch.Tensor, weight=None, bias=None) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-6)


# ---------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("positions", POSITIONS)
def test_it_normalises_the_mean_of_the_raw_patches(positions):
    encoder, image = beit(positions=positions, layer_scale=0.1), torch.randn(2, 3, 16, 16)
    seen = []
    encoder.blocks[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    encoder(image)
    backbone = encoder.backbone().eval()
    assert backbone.num_features == 16
    expected = layer_norm(seen[0][:, 1:].mean(dim=1))
    torch.testing.assert_close(backbone(image), expected, atol=1e-5, rtol=1e-5)


def test_fine_tuned_weights_keep_their_norm():
    encoder, image = beit(final_norm="pooled", num_classes=5), torch.randn(2, 3, 16, 16)
    backbone = encoder.backbone().eval()
    mean = encoder(image).patches.mean(dim=1)
    expected = layer_norm(mean, encoder.fc_norm.weight, encoder.fc_norm.bias)
    torch.testing.assert_close(backbone(image), expected, atol=1e-5, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_every_block_gets_its_own_copy_of_the_shared_table():
    encoder = beit(positions="relative")
    shared = encoder.rel_pos_bias.relative_position_bias_table
    blocks = encoder.backbone().vit.blocks
    tables = [block.attn.relative_position_bias_table for block in blocks]
    assert all(torch.equal(table, shared) for table in tables)
    assert len({table.data_ptr() for table in (shared, *tables)}) == 3


@pytest.mark.parametrize("positions", POSITIONS)
def test_its_groups_hold_every_parameter_once_and_none_of_the_encoder(positions):
    encoder = beit(positions=positions, layer_scale=0.1)
    backbone = encoder.backbone()
    groups = backbone.layer_groups()
    grouped = [id(parameter) for group in groups for parameter in group]
    assert len(groups) == 1 + 2 + 1
    assert sorted(grouped) == sorted(id(parameter) for parameter in backbone.parameters())
    storages = {parameter.data_ptr() for parameter in encoder.parameters()}
    assert not storages & {parameter.data_ptr() for parameter in backbone.parameters()}
    names = dict(backbone.named_parameters())
    first = {name for name, p in names.items() if any(p is member for member in groups[0])}
    cells = {"vit.cls_token", "vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"}
    assert first == cells | ({"vit.pos_embed"} if positions == "absolute" else set())
    assert groups[-1] == [names["fc_norm.weight"], names["fc_norm.bias"]]
    assert backbone.no_weight_decay() == {"vit.cls_token", "vit.pos_embed"}


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_parameter_gets_a_gradient(positions):
    backbone = beit(positions=positions, layer_scale=0.1).backbone().train()
    backbone(torch.randn(2, 3, 16, 16)).pow(3).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_drop_path_can_be_set():
    backbone = beit(depth=3, drop_path=0.1).backbone()
    backbone.set_drop_path(0.4)
    rates = [block.drop_path2.drop_prob for block in backbone.vit.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])


def test_making_it_leaves_the_random_state_and_the_encoder_alone():
    encoder = beit(positions="relative")
    before, state = {k: v.clone() for k, v in encoder.state_dict().items()}, torch.get_rng_state()
    encoder.backbone(Grid(6, 6, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_it_exists_without_memory():
    with torch.device("meta"):
        encoder = BEiTViT(Geometry(Grid(14, 14, 16)), positions="relative")
        backbone = encoder.backbone()
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}


# ----------------------------------------------------------------------------------- other grids


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("source", "grid"), [(SQUARE, Grid(6, 8, 4)), (OBLONG, Grid(2, 7, 4))])
def test_it_takes_images_of_another_size(positions, source, grid):
    backbone = beit(source, positions=positions).backbone(grid)
    assert backbone(torch.randn(2, 3, *grid.image_size)).shape == (2, 16)
    resampled = dict(backbone.named_parameters())
    if positions == "absolute":
        assert resampled["vit.pos_embed"].shape == (1, 1 + grid.num_patches, 16)
    else:
        rows = (2 * grid.rows - 1) * (2 * grid.cols - 1) + 3
        assert resampled[f"vit.blocks.1.{TABLE}"].shape == (rows, 2)


def test_the_same_grid_changes_nothing():
    encoder = beit(positions="relative_per_block")
    table = encoder.blocks[1].attn.relative_position_bias_table
    moved = encoder.backbone(Grid(4, 4, 4)).vit.blocks[1].attn.relative_position_bias_table
    assert torch.equal(moved, table)


def test_patches_cannot_change_their_size():
    with pytest.raises(RecipeError, match="must be 4 px, but are 8 px"):
        beit().backbone(Grid(4, 4, 8))


def test_absolute_positions_are_resampled_bicubically():
    encoder = beit(OBLONG)
    places = encoder.pos_embed.detach()
    moved = encoder.backbone(Grid(6, 7, 4)).vit.pos_embed
    cells = places[0, 1:].T.reshape(1, 16, 3, 5)
    expected = F.interpolate(cells, (6, 7), mode="bicubic", align_corners=False)
    assert torch.equal(moved[:, 0], places[:, 0])
    torch.testing.assert_close(moved[0, 1:].T, expected.reshape(16, 42))


@pytest.mark.parametrize(("num_source", "num_target"), [(14, 24), (14, 32), (4, 5), (7, 14)])
def test_source_offsets_grow_geometrically_to_the_targets_edge(num_source, num_target):
    offsets = source_offsets(num_source, num_target)
    assert len(offsets) == 2 * num_source - 1
    assert offsets[num_source - 1] == 0
    assert np.array_equal(offsets, -offsets[::-1])
    steps = np.diff(offsets[num_source - 1 :])
    assert steps[0] == 1
    assert np.allclose(steps[1:] / steps[:-1], steps[1])
    assert offsets[-1] == pytest.approx(num_target - 1, abs=1e-3)


def test_source_offsets_barely_grow_where_the_target_is_smaller():
    assert source_offsets(14, 7)[14:17] == pytest.approx([1, 2.01, 3.0301], abs=1e-5)


@pytest.mark.parametrize(
    ("source", "grid"),
    [(Grid(14, 14, 4), Grid(24, 24, 4)), (Grid(7, 9, 4), Grid(9, 12, 4)), (OBLONG, Grid(3, 8, 4))],
)
def test_relative_positions_are_resampled_by_a_cubic_between_those_offsets(source, grid):
    def cubic(rows, cols):
        down, right = np.meshgrid(np.asarray(rows) / 10, np.asarray(cols) / 10, indexing="ij")
        heads = 1 + down - right**2, right**3 * down**2 - down**3
        return torch.from_numpy(np.stack(heads, axis=-1).reshape(-1, 2)).float()

    cls_rows = torch.arange(6.0).reshape(3, 2)
    # A cubic spline gives a polynomial of degree 3 back, so both tables are known.
    rows, cols = source_offsets(source.rows, grid.rows), source_offsets(source.cols, grid.cols)
    table = torch.cat([cubic(rows, cols), cls_rows])
    targets = range(1 - grid.rows, grid.rows), range(1 - grid.cols, grid.cols)
    moved = resample_relative(table, source, grid)
    expected = torch.cat([cubic(*targets), cls_rows])
    torch.testing.assert_close(moved, expected, atol=1e-3, rtol=1e-3)


def test_a_single_row_of_relative_positions_cannot_be_resampled():
    with pytest.raises(RecipeError, match="at least 2 x 2 patches, but there are 1 x 4"):
        beit(Grid(1, 4, 4), positions="relative").backbone(Grid(2, 4, 4))
    assert beit(Grid(1, 4, 4)).backbone(Grid(2, 4, 4)).num_features == 16
