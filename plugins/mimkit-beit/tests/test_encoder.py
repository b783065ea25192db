"""BEiT's vision transformer: sizes, first weights, masks and positions."""

import math

import pytest
import torch
from mimkit_beit.encoder import BEiTViT
from timm.models.beit import Beit

from mimkit import BoundaryError, Geometry, Grid, RecipeError, patchify, take, unpatchify

SQUARE, OBLONG = Grid(4, 4, 4), Grid(3, 5, 4)
CONTEXT = torch.tensor([[0, 3, 7, 12], [1, 2, 8, 14]])
HIDDEN = torch.zeros(2, 16, dtype=torch.bool)
HIDDEN[:, ::3] = True
ALL = torch.arange(16).expand(2, -1)
POSITIONS = ["absolute", "relative", "relative_per_block"]
PLUS = {"positions": "relative", "layer_scale": 0.1}


def beit(grid: Grid = SQUARE, **options) -> BEiTViT:
    """A small encoder whose relative positions say something."""
    torch.manual_seed(0)
    defaults = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    encoder = BEiTViT(Geometry(grid), **(defaults | options)).eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("table"):
            torch.nn.init.normal_(parameter)
    return encoder


def noise_at(image: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Replaces whole patches by noise."""
    patches = patchify(image, 4).clone()
    patches[cells] = torch.randn_like(patches[cells])
    return unpatchify(patches, SQUARE)


# ----------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PLUS, 91_965_776),
        ({}, 92_089_856),
        (PLUS | {"embed_dim": 1024, "depth": 24, "num_heads": 16}, 311_534_016),
    ],
    ids=["base plus", "base plain", "large plus"],
)
def test_it_has_the_parameters_of_the_released_models(options, expected):
    with torch.device("meta"):
        encoder = BEiTViT(Geometry(Grid(14, 14, 16)), **options)
        head = torch.nn.Linear(encoder.embed_dim, 8192)
    count = sum(p.numel() for part in (encoder, head) for p in part.parameters())
    assert count == expected


def test_it_starts_as_the_released_program_does():
    torch.manual_seed(0)
    encoder = BEiTViT(Geometry(Grid(14, 14, 16)), embed_dim=384, num_heads=6, **PLUS)
    cut = 0.0108  # deviation of a normal of 0.02 that is cut at +-0.02
    for number, block in enumerate(encoder.blocks, start=1):
        for linear in (block.attn.proj, block.mlp.fc2):
            std = linear.weight.std().item()
            assert std == pytest.approx(cut / math.sqrt(2 * number), rel=0.01)
            assert linear.bias.eq(0).all()
        for linear in (block.attn.qkv, block.mlp.fc1):
            assert linear.weight.std().item() == pytest.approx(cut, rel=0.01)
        assert block.gamma_1.eq(0.1).all()
        assert block.gamma_2.eq(0.1).all()
        assert block.attn.q_bias.eq(0).all()
        assert block.attn.v_bias.eq(0).all()
    assert encoder.blocks[0].attn.proj.weight.std().item() == pytest.approx(0.00763, rel=0.01)
    assert encoder.blocks[11].mlp.fc2.weight.std().item() == pytest.approx(0.0022, rel=0.01)
    for token in (encoder.cls_token, encoder.mask_token):
        assert token.std().item() == pytest.approx(cut, rel=0.1)
    assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(cut, rel=0.01)
    assert encoder.rel_pos_bias.relative_position_bias_table.eq(0).all()
    drawn = [p for name, p in encoder.named_parameters() if p.ndim > 1 and "table" not in name]
    assert max(p.abs().max().item() for p in drawn) == pytest.approx(0.02, rel=1e-4)


def test_the_index_of_relative_positions_is_the_released_one():
    index = beit(Grid(14, 14, 16), positions="relative").rel_pos_bias.relative_position_index
    assert index[0, 0] == 731
    assert index[0, 1:].eq(729).all()
    assert index[1:, 0].eq(730).all()
    assert index[1, 1:4].tolist() == [364, 363, 362]
    assert index[2, 1] == 365


def test_relative_positions_follow_rows_and_columns_of_any_grid():
    encoder = beit(OBLONG, positions="relative")
    table = encoder.rel_pos_bias.relative_position_bias_table
    bias = encoder.rel_pos_bias()
    for query in range(15):
        for key in range(15):
            down, right = query // 5 - key // 5, query % 5 - key % 5
            row = (down + 2) * 9 + right + 4
            assert torch.equal(bias[:, query + 1, key + 1], table[row])


# ------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_tokens_at_some_places_are_those_of_the_whole(positions, final_norm):
    encoder = beit(positions=positions, final_norm=final_norm, layer_scale=0.1)
    image, wanted = torch.randn(2, 3, 16, 16), torch.tensor([[0, 3, 9], [6, 6, 15]])
    whole = encoder(image, ALL, HIDDEN)
    some = encoder.at(image, ALL, HIDDEN, wanted)
    torch.testing.assert_close(some.patches, take(whole.patches, wanted))
    assert torch.equal(some.index, wanted)


def test_the_places_are_counted_among_those_that_entered():
    encoder, image = beit(positions="relative"), torch.randn(2, 3, 16, 16)
    some = encoder.at(image, CONTEXT, None, torch.tensor([[1, 3], [0, 2]]))
    whole = encoder(image, CONTEXT)
    torch.testing.assert_close(some.patches[0], whole.patches[0, [1, 3]])
    torch.testing.assert_close(some.patches[1], whole.patches[1, [0, 2]])
    assert some.index.tolist() == [[3, 12], [1, 8]]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", [SQUARE, OBLONG], ids=["4x4", "3x5"])
def test_nothing_hidden_is_the_plain_encoder(positions, grid):
    encoder, image = beit(grid, positions=positions), torch.randn(2, 3, *grid.image_size)
    everything = torch.arange(grid.num_patches).expand(2, -1)
    plain = encoder(image)
    tokens = encoder(image, everything, torch.zeros_like(everything, dtype=torch.bool))
    assert plain.patches.shape == (2, grid.num_patches, 16)
    assert plain.prefix.shape == (2, 1, 16)
    assert torch.equal(plain.index, everything)
    assert torch.equal(tokens.patches, plain.patches)
    assert torch.equal(tokens.prefix, plain.prefix)


@pytest.mark.parametrize("positions", POSITIONS)
def test_hidden_patches_have_no_influence_but_know_their_place(positions):
    encoder, image = beit(positions=positions), torch.randn(2, 3, 16, 16)
    tokens = encoder(image, ALL, HIDDEN)
    other = encoder(noise_at(image, HIDDEN), ALL, HIDDEN)
    assert torch.equal(tokens.patches, other.patches)
    assert not torch.equal(tokens.patches, encoder(image).patches)
    hidden = tokens.patches[0, HIDDEN[0]]
    assert (hidden[:1] - hidden[1:]).abs().amax(dim=1).gt(1e-4).all()


def test_the_whole_grid_in_another_order_is_encoded_in_its_own():
    encoder, image = beit(positions="relative"), torch.randn(2, 3, 16, 16)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    tokens = encoder(image, order, take(HIDDEN[..., None], order)[..., 0])
    assert torch.equal(tokens.index, ALL)
    assert torch.equal(tokens.patches, encoder(image, ALL, HIDDEN).patches)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("grid", [SQUARE, OBLONG], ids=["4x4", "3x5"])
def test_dropping_patches_is_never_to_attend_to_them(positions, grid):
    encoder, image = beit(grid, positions=positions), torch.randn(2, 3, *grid.image_size)
    hidden = torch.tensor([[True, False, False, True], [False] * 4])
    tokens = encoder(image, CONTEXT, hidden)
    assert torch.equal(tokens.index, CONTEXT)
    # The whole grid, but the bias forbids to look at what is not in the context.
    x = torch.where(
        torch.zeros(2, grid.num_patches, dtype=torch.bool).scatter(1, CONTEXT, hidden)[..., None],
        encoder.mask_token,
        encoder.patch_embed(image),
    )
    x = torch.cat([encoder.cls_token.expand(2, -1, -1), x], dim=1)
    if positions == "absolute":
        x = x + encoder.pos_embed
        bias = torch.zeros(2, 1, 1, x.shape[1])
    else:
        bias = encoder.rel_pos_bias().expand(2, -1, -1, -1)
    forbidden = torch.ones(2, 1 + grid.num_patches, dtype=torch.bool)
    forbidden[:, 0] = False
    forbidden.scatter_(1, CONTEXT + 1, False)
    bias = bias.masked_fill(forbidden[:, None, None], float("-inf"))
    for block in encoder.blocks:
        x = block(x, bias)
    x = encoder.norm(x)
    torch.testing.assert_close(tokens.prefix, x[:, :1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.patches, take(x[:, 1:], CONTEXT), atol=1e-5, rtol=1e-5)


def test_a_table_for_each_block_needs_the_whole_grid():
    encoder = beit(positions="relative_per_block")
    with pytest.raises(BoundaryError, match="all 16 patches must enter, but 4 did"):
        encoder(torch.randn(2, 3, 16, 16), CONTEXT)


# ---------------------------------------------------------------------------- layers and gradients


@pytest.mark.parametrize("positions", POSITIONS)
def test_layers_are_what_the_blocks_give_and_the_last_are_the_features(positions):
    encoder, image = beit(positions=positions), torch.randn(2, 3, 16, 16)
    seen = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    first, last = encoder.layers(image)
    assert torch.equal(torch.cat([first.prefix, first.patches], dim=1), seen[0])
    assert torch.equal(last.patches, encoder.norm(seen[1])[:, 1:])
    assert torch.equal(last.patches, encoder.features(image).patches)
    pooled = beit(positions=positions, final_norm="pooled")
    assert torch.equal(pooled.layers(image)[-1].patches, pooled.features(image).patches)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mask_token", [True, False])
def test_every_parameter_gets_a_gradient(positions, mask_token):
    encoder = beit(positions=positions, mask_token=mask_token, layer_scale=0.1).train()
    assert encoder.takes_hidden == mask_token
    encoder(torch.randn(2, 3, 16, 16), ALL, HIDDEN).patches.pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_what_only_fine_tuned_networks_use_is_not_trained():
    encoder = beit(final_norm="pooled", num_classes=5)
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert encoder.norm is None
    assert all(parameter.requires_grad for parameter in beit().parameters())


def test_no_layer_scale_is_no_parameter():
    for layer_scale in (None, 0.0):
        names = dict(beit(layer_scale=layer_scale).named_parameters())
        assert not any("gamma" in name for name in names)


def test_mask_token_and_tables_are_decayed():
    assert beit().no_weight_decay() == {"cls_token", "pos_embed"}


def test_drop_path_rises_linearly_and_acts_in_training_only():
    encoder, image = beit(depth=3, drop_path=0.9), torch.randn(2, 3, 16, 16)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.45, 0.9])
    assert torch.equal(encoder(image).patches, encoder(image).patches)
    encoder.train()
    assert not torch.equal(encoder(image).patches, encoder(image).patches)


@pytest.mark.parametrize("options", [{}, PLUS, {"positions": "relative_per_block"}])
def test_the_step_is_one_graph(options):
    encoder, image = beit(depth=1, **options), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    assert torch.equal(compiled(image, ALL, HIDDEN).patches, encoder(image, ALL, HIDDEN).patches)
    if options.get("positions") != "relative_per_block":
        assert torch.equal(compiled(image, CONTEXT).patches, encoder(image, CONTEXT).patches)
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("positions", POSITIONS)
def test_compiled_in_half_precision_it_stays_near_float32(positions):
    # 197 tokens are no multiple of 8: kernels have refused such a bias.
    encoder = beit(Grid(14, 14, 4), positions=positions, embed_dim=128)
    image = torch.randn(8, 3, 56, 56)
    hidden = torch.arange(196).expand(8, -1) % 3 == 0
    context = torch.arange(196).expand(8, -1)

    def results(device, forward):
        encoder.to(device).zero_grad()
        patches = forward(*(tensor.to(device) for tensor in (image, context, hidden))).patches
        patches.float().square().mean().backward()
        gradients = {name: p.grad.cpu() for name, p in encoder.named_parameters()}
        return gradients | {"patches": patches.detach().float().cpu()}

    expected = results("cpu", encoder)
    compiled = torch.compile(encoder, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        found = results("cuda", compiled)
    for name, value in expected.items():
        assert (found[name] - value).norm() < 0.05 * value.norm() + 1e-6, name


def test_heads_must_divide_the_width():
    with pytest.raises(RecipeError, match="num_heads: must divide embed_dim = 16, but is 3"):
        beit(num_heads=3)


# ------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", [SQUARE, OBLONG], ids=["4x4", "3x5"])
def test_attention_is_that_of_timms_last_block(positions, grid):
    encoder = beit(grid, positions=positions, layer_scale=0.1)
    torch.nn.init.normal_(encoder.blocks[-1].attn.q_bias)
    image = torch.randn(2, 3, *grid.image_size)
    torch.nn.init.normal_(encoder.blocks[-1].attn.qkv.weight)  # so that attention is not even
    exported = encoder.timm_model()
    theirs = Beit(**exported.options).eval()
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
