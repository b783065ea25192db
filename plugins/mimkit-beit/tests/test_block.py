"""BEiT's block: the same numbers as timm's."""

import pytest
import torch
import torch.nn.functional as F
from mimkit_beit.block import Block, _rows
from timm.models import beit as timm_beit
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mimkit import take

HEADS, WINDOW, TOKENS = 2, (2, 3), 7


def pair(**options) -> tuple[timm_beit.Block, Block]:
    """Two blocks with the same weights, none of which is 0 or 1 throughout."""
    torch.manual_seed(0)
    blocks = [made(16, HEADS, qkv_bias=True, **options) for made in (timm_beit.Block, Block)]
    with torch.no_grad():
        for parameter in blocks[0].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    blocks[1].load_state_dict(blocks[0].state_dict())
    return blocks[0], blocks[1]


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, TOKENS, 16, requires_grad=True)
    return x, torch.randn(batch, HEADS, TOKENS, TOKENS, requires_grad=True)


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({"init_values": 0.1, "drop_path": 0.4}, None),
        ({"init_values": 0.1, "drop_path": 0.4}, 1),
        ({"init_values": None}, 1),
        ({"init_values": 0.1}, 4),
        ({"init_values": 0.1, "window_size": WINDOW}, None),
    ],
    ids=["no bias", "bias", "no factors", "a bias for each image", "positions of its own"],
)
def test_values_and_gradients_are_timms(options, shared):
    found = []
    for block in pair(**options):
        x, bias = inputs(shared or 1)
        torch.manual_seed(2)  # the same branches are dropped
        y = block(x, bias if shared else None)
        y.square().mean().backward()
        grads = [x.grad, bias.grad, *(parameter.grad for parameter in block.parameters())]
        found.append([y.detach(), *(grad for grad in grads if grad is not None)])
    theirs, ours = found
    assert len(ours) == len(theirs) == 2 + bool(shared) + len(list(block.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({"init_values": 0.1, "drop_path": 0.4}, None),
        ({"init_values": 0.1}, 1),
        ({"init_values": 0.1}, 4),
        ({"init_values": None, "window_size": WINDOW}, None),
    ],
    ids=["no bias", "bias", "a bias for each image", "positions of its own"],
)
def test_a_part_of_the_tokens_is_as_if_all_had_been_computed(options, shared):
    _, block = pair(**options)
    wanted = torch.tensor([[1, 4, 6], [2, 2, 3], [6, 5, 1], [1, 1, 1]])  # padding repeats
    found = []
    for all_tokens in (True, False):
        block.zero_grad()
        x, bias = inputs(shared or 1)
        torch.manual_seed(2)
        given = bias if shared else None
        y = take(block(x, given), wanted) if all_tokens else block(x, given, wanted)
        y.square().mean().backward()
        grads = [x.grad, bias.grad, *(parameter.grad for parameter in block.parameters())]
        found.append([y.detach(), *(grad for grad in grads if grad is not None)])
    whole, part = found
    assert len(part) == len(whole)
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-6)


def test_without_gradients_it_is_timms_too():
    theirs, ours = pair(init_values=0.1)
    x, bias = inputs(1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, bias), theirs(x, bias))


def test_in_bfloat16_it_is_as_near_as_timms():
    theirs, ours = pair(init_values=0.1)
    x, bias = inputs(1)
    exact = theirs(x, bias)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(block(x, bias) - exact).abs().max() for block in (theirs, ours)]
    assert ours(x, bias).dtype == torch.float32
    assert errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("part", [False, True], ids=["all tokens", "a part"])
@pytest.mark.parametrize(
    ("options", "shared"),
    [({}, 1), ({}, 4), ({"window_size": WINDOW}, None)],
    ids=["bias", "a bias for each image", "positions of its own"],
)
def test_every_row_of_the_bias_begins_where_a_fused_kernel_can_read_it(
    options, shared, part, monkeypatch
):
    _, block = pair(**options)
    x, bias = inputs(shared or 1)
    wanted = torch.tensor([[1, 4, 6]] * 4) if part else None
    given = []
    attention = F.scaled_dot_product_attention

    def watched(query, key, value, *, attn_mask):
        given.append((query, attn_mask))
        return attention(query, key, value, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):  # without, the CPU adds the bias itself
        block(x, bias if shared else None, wanted)
    ((query, mask),) = given
    assert mask.dtype == query.dtype == torch.bfloat16  # a cast after it would pack the rows
    assert mask.shape[-1] == TOKENS
    assert mask.stride(-1) == 1
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1])


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that is made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.itemsize)
        return made


def test_a_part_of_a_shared_bias_costs_no_copy_of_the_whole_for_each_image():
    batch, heads, tokens, part = 16, 12, 197, 75
    with FakeTensorMode(), Largest() as largest:
        bias = torch.empty(1, heads, tokens, tokens, requires_grad=True)
        rows = _rows(bias, torch.zeros(batch, part, dtype=torch.int64))
        assert rows.shape == (batch, heads, part, tokens)
        rows.backward(torch.empty_like(rows))
    assert largest.numbers == rows.numel()
