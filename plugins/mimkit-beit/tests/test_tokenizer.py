"""The tokenizer's shortcuts: its ids stay those of DALL·E's own class."""

import pytest
import torch
from dall_e import Encoder
from dall_e.encoder import EncoderBlock
from dall_e.utils import Conv2d
from mimkit_beit import tokenizer as module
from mimkit_beit.tokenizer import Size, Tokenizer, make_network
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mimkit import count_flops, freeze

CODES, ROWS, COLS = 512, 4, 6
SIZE = Size(CODES, hidden_dim=8, num_blocks=2)


@pytest.fixture(scope="module")
def encoder():
    encoder = Encoder(n_hid=SIZE.hidden_dim, n_blk_per_group=SIZE.num_blocks, vocab_size=CODES)
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        std = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        nn.init.normal_(parameter, std=std, generator=generator)
    return encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def scores(encoder):
    """Those of the class itself in float32, (B, N, K)."""
    return encoder(view()).flatten(2).transpose(1, 2)


def view(count=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 8 * ROWS, 8 * COLS, generator=generator)


class Watch(TorchDispatchMode):
    """Notes the scores that exist at once: what is as wide as the codebook."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if str(func) in ("aten.mm.dtype", "aten.addmm.default"):
            self.seen.append((tuple(made.shape), made.dtype, args[1].dtype))
        return made


@pytest.mark.parametrize("at_once", [2**26, 7 * CODES, 1], ids=["all", "7 tokens", "one"])
def test_ids_are_those_of_the_class_however_many_scores_exist_at_once(
    at_once, encoder, scores, monkeypatch
):
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", at_once)
    with Watch() as watch:
        ids = Tokenizer(SIZE, encoder.state_dict(), None)(view())
    assert torch.equal(ids, scores.argmax(2))
    assert max(rows for (rows, _), *_ in watch.seen) == min(max(1, at_once // CODES), ids.numel())


@pytest.mark.parametrize("count", [5, 40], ids=["some", "more than there are"])
def test_ids_at_some_positions_are_those_of_all(count, encoder, scores):
    at = torch.randint(ROWS * COLS, (6, 2, count), generator=torch.Generator().manual_seed(2))
    with Watch() as watch:
        ids = Tokenizer(SIZE, encoder.state_dict(), None)(view(), at)
    expected = scores.argmax(2).gather(1, at.flatten(1)).view_as(at)
    assert torch.equal(ids, expected)
    assert [shape for shape, *_ in watch.seen] == [(6 * min(2 * count, ROWS * COLS), CODES)]


def test_of_several_best_codes_the_first_is_taken(encoder):
    tied = dict(encoder.state_dict())
    for name in ("w", "b"):
        tensor = tied[f"blocks.output.conv.{name}"].clone()
        tensor[CODES // 2 :] = tensor[: CODES // 2]
        tied[f"blocks.output.conv.{name}"] = tensor
    assert Tokenizer(SIZE, tied, None)(view()).max() < CODES // 2


@pytest.mark.skipif(not module._SUMS_TO_FLOAT32, reason="torch has no such product")
def test_on_a_fake_gpu_factors_are_float16_and_scores_float32_for_the_same_work():
    tokenizer = freeze(Tokenizer(SIZE, make_network("encoder", SIZE).state_dict(), None))
    work = {}
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        for device in ("cpu", "cuda"):
            tokenizer.to_empty(device=device)
            images = torch.empty(6, 3, 8 * ROWS, 8 * COLS, device=device)
            at = torch.zeros(6, 5, dtype=torch.int64, device=device)
            ids = tokenizer(images, at)
            assert (ids.shape, ids.dtype, ids.device.type) == ((6, 5), torch.int64, device)
            work[device] = count_flops(lambda images=images, at=at: tokenizer(images, at))
    scored = ((30, CODES), torch.float32)
    assert watch.seen[:2] == [(*scored, torch.float32)] * 2
    assert watch.seen[2:] == [(*scored, torch.float16)] * 2
    assert work["cuda"] == work["cpu"]


@torch.no_grad()
def test_simulated_on_the_cpu_float16_changes_ids_at_near_ties_alone(encoder):
    """Values are rounded where a GPU rounds them, and sums are float32 as there."""
    rounded = Encoder(n_hid=SIZE.hidden_dim, n_blk_per_group=SIZE.num_blocks, vocab_size=CODES)
    rounded.load_state_dict({name: _half(t) for name, t in encoder.state_dict().items()})
    rounded.blocks.output.conv.b.data = encoder.blocks.output.conv.b
    for child in rounded.modules():
        if isinstance(child, Conv2d | EncoderBlock):
            child.register_forward_pre_hook(lambda _, inputs: tuple(map(_half, inputs)))
            if child is not rounded.blocks.output.conv:
                child.register_forward_hook(lambda _, __, output: _half(output))
    images = view(60)
    scores, found = (net(images).flatten(2).transpose(1, 2) for net in (encoder, rounded))

    ids, exact = found.argmax(2), scores.argmax(2)
    deviation = scores.std()
    assert 0 < (found - scores).abs().max() < 0.01 * deviation
    lost = scores.amax(2) - scores.gather(2, ids[..., None])[..., 0]
    assert lost.max() < 0.01 * deviation
    assert (ids == exact).float().mean() > 0.98


def _half(tensor):
    return tensor.half().float()
