"""The regressor's block, against its arithmetic written out head by head."""

import pytest
import torch
import torch.nn.functional as F
from mimkit_cae.regressor import Regressor, RegressorBlock


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def build(layer_scale=0.1, drop_path=0.0):
    torch.manual_seed(0)
    return randomise(RegressorBlock(8, 2, 2.0, layer_scale, drop_path))


@pytest.fixture
def inputs():
    """Masked patches, their positions, visible patches, and these with their positions."""
    generator = torch.Generator().manual_seed(1)
    x, positions = (torch.randn(2, 3, 8, generator=generator) for _ in range(2))
    visible, visible_positions = (torch.randn(2, 4, 8, generator=generator) for _ in range(2))
    return x, positions, visible, visible + visible_positions


def norm(x, layer):
    return F.layer_norm(x, (8,), layer.weight, layer.bias, 1e-6)


def written_out(block, x, positions, visible, placed):
    """The published formulas, one attention head at a time."""
    attention = block.cross_attn
    query = norm(x + positions, block.norm1_q) @ attention.q.weight.T + attention.q_bias
    key = norm(torch.cat([placed, x + positions], 1), block.norm1_k) @ attention.k.weight.T
    value = norm(torch.cat([visible, x], 1), block.norm1_v) @ attention.v.weight.T
    value = value + attention.v_bias
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[..., head] @ key[..., head].transpose(1, 2) / 4**0.5
        heads.append(scores.softmax(-1) @ value[..., head])
    attended = torch.cat(heads, -1) @ attention.proj.weight.T + attention.proj.bias
    stream = norm(x + block.gamma_1_cross * attended, block.norm2_cross)
    return stream + block.gamma_2_cross * block.mlp_cross(stream)


def test_a_block_is_the_published_formula(inputs):
    block = build()
    expected = written_out(block, *inputs)
    torch.testing.assert_close(block(*inputs), expected, atol=1e-5, rtol=1e-5)


def test_without_layer_scale_the_factors_are_one(inputs):
    block = build(layer_scale=None)
    assert block.gamma_1_cross is None
    scaled = build(layer_scale=1.0)
    scaled.load_state_dict(block.state_dict(), strict=False)
    with torch.no_grad():
        scaled.gamma_1_cross.fill_(1)
        scaled.gamma_2_cross.fill_(1)
    torch.testing.assert_close(block(*inputs), scaled(*inputs))


def test_the_norm_between_the_branches_replaces_the_stream(inputs):
    """With the last branch shut, what comes out is normalised; the input has not passed by."""
    block = build()
    with torch.no_grad():
        block.gamma_2_cross.zero_()
        block.norm2_cross.weight.fill_(1)
        block.norm2_cross.bias.zero_()
    out = block(100 * inputs[0], *inputs[1:])
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, correction=0), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_positions_do_not_reach_the_values(inputs):
    """With one and the same value for all, where to look makes no difference."""
    block = build()
    x, positions, visible, placed = (torch.zeros_like(tensor) for tensor in inputs)
    moved = block(x, inputs[1], visible, placed + inputs[3])
    torch.testing.assert_close(moved, block(x, positions, visible, placed))


def test_masked_patches_attend_to_each_other(inputs):
    block = build()
    x, positions, visible, placed = inputs
    other = x.clone()
    other[:, 2, ::2] += 1
    before, after = block(x, positions, visible, placed), block(other, positions, visible, placed)
    assert (before - after)[:, :2].abs().amax(-1).gt(1e-4).all()


def test_visible_patches_are_the_same_for_every_block():
    torch.manual_seed(0)
    regressor = randomise(
        Regressor(8, 2, num_heads=2, mlp_ratio=2.0, layer_scale=0.1, drop_path=0.0)
    )
    visible, visible_positions = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    positions = torch.randn(2, 3, 8)
    x = regressor.mask_token.expand(2, 3, 8)
    for block in regressor.blocks:
        x = written_out(block, x, positions, visible, visible + visible_positions)
    expected = norm(x, regressor.norm)
    latent = regressor(visible, visible_positions, positions)
    torch.testing.assert_close(latent, expected, atol=1e-5, rtol=1e-5)


def test_either_branch_can_be_skipped_for_an_image(inputs):
    """With a rate near 1 no branch is taken, and what remains is the norm of the stream."""
    block = build(drop_path=1 - 1e-9).train()
    torch.manual_seed(0)
    torch.testing.assert_close(block(*inputs), norm(inputs[0], block.norm2_cross))
