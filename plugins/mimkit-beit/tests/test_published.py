"""Published weights: every format, nothing that a file holds is run, nothing wrong gets through."""

import io
import os
import pickle
from collections import OrderedDict
from typing import ClassVar

import pytest
import torch
from dall_e import Decoder, Encoder
from mimkit_beit import published
from mimkit_beit.pickles import read_weights
from mimkit_beit.published import decoder_of, fetch, find, identify, is_here, load_network
from mimkit_beit.tokenizer import PUBLISHED, Size, Tokenizer, make_network
from safetensors.torch import save_file
from torch import nn

from mimkit import DataError

WGET_LOG = b"""--2023-05-01 10:00:00--  https://cdn.openai.com/dall-e/encoder.pkl
Resolving cdn.openai.com (cdn.openai.com)... 13.107.213.67
HTTP request sent, awaiting response... 200 OK
"""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Data and cache of this test alone; a server that has nothing."""
    monkeypatch.setenv("MIMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "URL", (tmp_path / "server").as_uri() + "/{}.pkl")
    (tmp_path / "server").mkdir()
    (tmp_path / "data" / "dall-e").mkdir(parents=True)


@pytest.fixture
def encoder():
    return seeded(Encoder(n_hid=8, n_blk_per_group=1, vocab_size=32))


@pytest.fixture
def decoder():
    return seeded(Decoder(n_init=8, n_hid=8, n_blk_per_group=1, vocab_size=32))


def seeded(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def say(line):
    pass


def write_module(network, path):
    torch.save(network, path)


def write_legacy_module(network, path):
    torch.save(network, path, _use_new_zipfile_serialization=False)


def write_state_dict(network, path):
    torch.save(network.state_dict(), path)


def write_legacy_state_dict(network, path):
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)


def write_nested(network, path):
    torch.save({"meta": {"epoch": 3}, "state_dict": network.state_dict()}, path)


def write_wrapped(network, path):
    wrapped = {f"module._orig_mod.{k}": v for k, v in network.state_dict().items()}
    torch.save({"model": wrapped, "epoch": 3}, path)


def write_safetensors(network, path):
    save_file(network.state_dict(), path)


WRITERS = [
    write_module,
    write_legacy_module,
    write_state_dict,
    write_legacy_state_dict,
    write_nested,
    write_wrapped,
    write_safetensors,
]
PICKLERS = WRITERS[:2]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_every_format_gives_the_same_weights(write, network, tmp_path, request):
    module = request.getfixturevalue(network)
    write(module, tmp_path / "file.pkl")
    weights = load_network(network, tmp_path / "file.pkl", say)
    assert weights.tensors.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(weights.tensors[name], tensor)
        assert not weights.tensors[name].requires_grad
    assert weights.size == Size(32, 8, 1, 8 if network == "decoder" else 128)


@pytest.mark.parametrize("write", PICKLERS)
def test_an_old_decoder_whose_layers_lack_what_torch_now_expects_still_decodes(
    write, encoder, decoder, tmp_path
):
    ids = torch.arange(6).view(1, 2, 3)
    one_hot = nn.functional.one_hot(ids, 32).movedim(-1, 1).float()
    expected = decoder(one_hot)[:, :3].sigmoid()
    for module in decoder.modules():
        if isinstance(module, nn.Upsample):
            del module.recompute_scale_factor
    write(decoder, tmp_path / "decoder.pkl")
    weights = load_network("decoder", tmp_path / "decoder.pkl", say)
    tokenizer = Tokenizer(weights.size, encoder.state_dict(), weights.tensors)
    torch.testing.assert_close(tokenizer.decode(ids), expected)


def test_the_published_size_has_the_published_number_of_parameters():
    encoder, decoder = (make_network(name, PUBLISHED) for name in ("encoder", "decoder"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 53_786_240
    assert len(encoder.state_dict()) == 74
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 43_829_766


class Bomb:
    """Runs a command when it is unpickled in the ordinary way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "within a module"])
def test_nothing_of_a_file_is_run(legacy, inside, encoder, tmp_path):
    trap = tmp_path / "trap"
    content = Bomb(str(trap))
    if inside:
        encoder.extra = content
        content = encoder
    torch.save(content, tmp_path / "file.pkl", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=r"asks for 'posix\.mkdir'.*Nothing of it was run"):
        read_weights(tmp_path / "file.pkl")
    assert not trap.exists()
    torch.load(tmp_path / "file.pkl", weights_only=False)
    assert trap.exists(), "the file would not have done anything, so the test proves nothing"


@pytest.mark.parametrize("write", PICKLERS)
def test_a_module_of_another_class_is_refused_by_name(write, tmp_path):
    write(nn.Linear(2, 2), tmp_path / "file.pkl")
    with pytest.raises(DataError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "file.pkl")


def test_the_log_of_a_download_is_recognised(tmp_path):
    (tmp_path / "encoder.pkl").write_bytes(WGET_LOG)
    with pytest.raises(DataError, match=r"a text that begins with '--2023-05-01.*wget -O FILE URL"):
        read_weights(tmp_path / "encoder.pkl")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(write, kept, encoder, tmp_path):
    path = tmp_path / "encoder.pkl"
    write(encoder, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=r"encoder\.pkl: must be the weights of a dVAE"):
        load_network("encoder", path, say)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"a": 1}),
        b"\x80\x02garbage that is no pickle",
        b"PK\x03\x04 no archive \xff\x00",
        bytes(range(256)),
    ],
)
def test_something_else_is_refused(content, tmp_path):
    (tmp_path / "encoder.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"encoder\.pkl: must be the weights of a dVAE"):
        read_weights(tmp_path / "encoder.pkl")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    write_state_dict(nn.Conv2d(3, 8, 7), tmp_path / "model.pth")
    with pytest.raises(DataError, match=r"holds 2 tensors such as 'weight', 'bias'"):
        load_network("encoder", tmp_path / "model.pth", say)


def missing(state):
    del state["blocks.group_2.block_1.id_path.w"]
    return "1 are wrong: blocks.group_2.block_1.id_path.w is missing"


def strange(state):
    state["blocks.group_2.block_9.id_path.w"] = torch.zeros(1)
    return "1 are wrong: blocks.group_2.block_9.id_path.w is not there at all"


def misshapen(state):
    state["blocks.input.b"] = torch.zeros(9)
    return "blocks.input.b has shape (9,) instead of (8,)"


def whole_numbers(state):
    state["blocks.input.b"] = torch.zeros(8, dtype=torch.int32)
    return "blocks.input.b is of type int32 instead of a floating-point one"


def infinite(state):
    state["blocks.input.b"] = torch.full((8,), torch.inf)
    return "blocks.input.b has 8 of 8 values that are NaN or infinite"


def without_a_name(state):
    state[3] = torch.zeros(8)
    return "must be text, but it has 3 (int)"


CHANGES = [missing, strange, misshapen, whole_numbers, infinite, without_a_name]


@pytest.mark.parametrize("change", CHANGES)
def test_names_and_shapes_must_be_exactly_those_of_the_network(change, encoder, tmp_path):
    state = OrderedDict(encoder.state_dict())
    words = change(state)
    torch.save(state, tmp_path / "encoder.pth")
    with pytest.raises(DataError) as caught:
        load_network("encoder", tmp_path / "encoder.pth", say)
    assert words in str(caught.value)


def test_the_data_folder_comes_before_the_cache(tmp_path):
    assert find("encoder") is None
    assert not is_here("encoder")
    cached = tmp_path / "cache" / "dall-e" / "encoder.pkl"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find("encoder") == cached
    given = tmp_path / "data" / "dall-e" / "encoder.pkl"
    given.touch()
    assert find("encoder") == given
    assert is_here("encoder")


def test_a_file_is_unpickled_once_and_its_checksum_told(encoder, tmp_path, monkeypatch):
    path = tmp_path / "data" / "dall-e" / "encoder.pkl"
    write_module(encoder, path)
    digest = identify("encoder", None)
    lines = []
    first = load_network("encoder", None, lines.append)
    assert digest in lines[0]
    monkeypatch.setattr(published, "read_weights", lambda file: pytest.fail("read again"))
    path.unlink()
    again = load_network("encoder", None, lines.append)
    assert len(lines) == 1
    assert again.sha256 == first.sha256 == digest == identify("encoder", None)
    assert all(torch.equal(again.tensors[name], first.tensors[name]) for name in first.tensors)


def test_another_file_in_its_place_is_refused(encoder, tmp_path):
    path = tmp_path / "data" / "dall-e" / "encoder.pkl"
    write_module(encoder, path)
    load_network("encoder", None, say)
    encoder.blocks.input.b.data += 1
    write_module(encoder, path)
    with pytest.raises(DataError, match="must be the file of SHA-256"):
        load_network("encoder", None, say)


def test_a_damaged_copy_is_made_again_and_without_the_file_refused(encoder, tmp_path):
    path = tmp_path / "data" / "dall-e" / "encoder.pkl"
    write_module(encoder, path)
    load_network("encoder", None, say)
    copy = tmp_path / "cache" / "dall-e" / "encoder.safetensors"
    damaged = bytearray(copy.read_bytes())
    damaged[-1] ^= 1
    copy.write_bytes(damaged)
    weights = load_network("encoder", None, say)
    assert torch.equal(weights.tensors["blocks.input.w"], encoder.blocks.input.w)
    copy.write_bytes(damaged)
    path.unlink()
    with pytest.raises(DataError, match=r"encoder\.pkl must be here, but is not"):
        load_network("encoder", None, say)


def test_a_download_goes_to_the_cache(encoder, tmp_path):
    write_module(encoder, tmp_path / "server" / "encoder.pkl")
    fetch("encoder", say)
    assert find("encoder") == tmp_path / "cache" / "dall-e" / "encoder.pkl"
    (tmp_path / "server" / "encoder.pkl").unlink()
    fetch("encoder", say)  # is here


def test_offline_says_how_to_get_the_file(tmp_path):
    with pytest.raises(DataError, match=r"wget \S+ -O decoder\.pkl.*weights = 'train'"):
        fetch("decoder", say)
    assert not is_here("decoder")


def test_a_download_that_breaks_off_leaves_nothing(monkeypatch, tmp_path):
    class Answer(io.BytesIO):
        headers: ClassVar = {"Content-Length": "1000"}

    monkeypatch.setattr(published.urllib.request, "urlopen", lambda *_, **__: Answer(b"x" * 10))
    with pytest.raises(DataError, match="only 10 of 1,000 bytes came"):
        fetch("encoder", say)
    assert list((tmp_path / "cache").rglob("*.pkl*")) == []


def test_a_decoder_is_looked_for_beside_its_encoder(encoder, decoder, tmp_path):
    write_module(encoder, tmp_path / "encoder.pkl")
    assert decoder_of(tmp_path / "encoder.pkl") is None
    write_module(decoder, tmp_path / "decoder.pkl")
    assert decoder_of(tmp_path / "encoder.pkl") == tmp_path / "decoder.pkl"
    write_state_dict(encoder, tmp_path / "mine.pth")
    assert decoder_of(tmp_path / "mine.pth") is None


def test_one_file_may_hold_both(encoder, decoder, tmp_path):
    path = tmp_path / "dvae.safetensors"
    both = {"encoder": encoder, "decoder": decoder}
    save_file(
        {
            f"{network}.{name}": tensor
            for network, module in both.items()
            for name, tensor in module.state_dict().items()
        },
        path,
    )
    assert decoder_of(path) == path
    for network, module in both.items():
        weights = load_network(network, path, say)
        assert torch.equal(weights.tensors["blocks.input.w"], module.blocks.input.w)
