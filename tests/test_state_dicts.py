"""State dicts are found where programs put them, and freed of what wraps the model."""

import argparse
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from mimkit import Checkpoint, DataError, read_checkpoint, unwrap
from mimkit.parts.state_dicts import fault

FILE = Path("x.pth")
BARE = {"cls_token": torch.ones(1, 1, 4), "norm.weight": torch.arange(4.0)}
HEAD = {"head.weight": torch.ones(2, 4)}
PREFIXES = ("module", "model", "backbone", "encoder", "network", "net", "_orig_mod")
CONTAINERS = (
    *("model", "module", "state_dict", "model_state_dict", "network", "net", "encoder"),
    *("student", "teacher", "model_ema", "state_dict_ema", "ema", "target_encoder"),
)


def below(prefix, tensors=None):
    return {f"{prefix}{name}": tensor for name, tensor in (tensors or BARE).items()}


# -------------------------------------------------------------------------------------- prefixes


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wraps_the_model_is_taken_off_its_names(prefix):
    assert unwrap(below(f"{prefix}."), FILE).tensors.keys() == BARE.keys()


@pytest.mark.parametrize("prefixes", list(itertools.permutations(PREFIXES, 2)), ids=".".join)
def test_wrappers_may_stand_one_below_the_other(prefixes):
    assert unwrap(below(".".join(prefixes) + "."), FILE).tensors.keys() == BARE.keys()


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PREFIXES), max_size=5), st.sampled_from([None, *CONTAINERS]))
def test_any_nest_of_wrappers_gives_the_bare_names(prefixes, container):
    tensors = below("".join(f"{prefix}." for prefix in prefixes))
    found = unwrap(tensors if container is None else {container: tensors, "epoch": 3}, FILE)
    assert found.tensors.keys() == BARE.keys()
    assert found.notes == ()


@pytest.mark.parametrize(
    "beside", ["head.weight", "decoder_blocks.0.norm.bias", "mask_token", "projector.0.weight"]
)
def test_a_head_or_decoder_may_stand_beside_the_encoder(beside):
    found = unwrap(below("encoder.") | {beside: torch.ones(1)}, FILE)
    assert found.tensors.keys() == {*BARE, beside}


def test_a_prefix_that_not_all_share_is_a_name():
    # As in Hugging Face's models, where "encoder" is a part of the model.
    names = {"embeddings.cls_token", "encoder.layer.0.weight", "layernorm.weight"}
    assert unwrap(dict.fromkeys(names, torch.ones(1)), FILE).tensors.keys() == names


@pytest.mark.parametrize("compiled", ["model", "one block", "model in parallel"])
def test_what_torch_itself_writes_is_read(compiled, monkeypatch):
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=0
    )
    names = set(model.state_dict())
    if compiled == "one block":
        model.blocks[0] = torch.compile(model.blocks[0])
    else:
        model = torch.compile(model)
    if compiled == "model in parallel":
        model = torch.nn.DataParallel(model)
    assert set(model.state_dict()) != names
    assert unwrap(model.state_dict(), FILE).tensors.keys() == names


def test_two_models_in_one_state_dict_are_refused():
    with pytest.raises(DataError, match=r"cls_token and module\.cls_token are both"):
        unwrap(BARE | below("module."), FILE)


# ------------------------------------------------------------------------------------ containers


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_state_dict_is_found_under_the_names_that_programs_use(container, tmp_path):
    torch.save({container: BARE, "optimizer": {"state": {}}, "epoch": 7}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").tensors.keys() == BARE.keys()


def test_containers_may_stand_in_one_another():
    assert unwrap({"state_dict": {"model": below("module.")}}, FILE).tensors.keys() == BARE.keys()


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [
        ("student", "teacher"),
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("encoder", "target_encoder"),
    ],
)
def test_averaged_weights_come_before_others_and_a_note_says_how_to_get_these(
    plain, averaged, tmp_path
):
    file = tmp_path / "x.pth"
    mean = {name: tensor + 1 for name, tensor in BARE.items()}
    torch.save({plain: BARE, averaged: below("module.", mean)}, file)
    found = read_checkpoint(file)
    assert torch.equal(found.tensors["cls_token"], mean["cls_token"])
    (note,) = found.notes
    assert f"'{averaged}' is taken, not '{plain}'" in note
    # The command that the note gives does what it says.
    command = note.partition("of its own: ")[2]
    exec(command, {"torch": torch, "FILE": file, "NEW": tmp_path / "new.pth"})
    found = read_checkpoint(tmp_path / "new.pth")
    assert torch.equal(found.tensors["cls_token"], BARE["cls_token"])
    assert found.notes == ()


def test_options_of_the_program_are_found_as_namespace_and_as_table():
    for args in (argparse.Namespace(lr=0.5), {"lr": 0.5}):
        assert unwrap({"model": BARE, "args": args}, FILE).number("lr", 0.1) == 0.5
    assert Checkpoint(BARE, {"lr": "much"}).number("lr", 0.1) == 0.1


def test_a_mapping_that_holds_itself_is_refused():
    endless: dict[str, object] = {}
    endless["model"] = endless
    with pytest.raises(DataError, match="must hold a state dict, alone or under"):
        unwrap(endless, FILE)


# --------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("key", [0, None, ("a", 1), 2.5])
def test_a_name_that_is_no_text_is_refused(key, tmp_path):
    torch.save({"model": {**BARE, key: torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(DataError, match=r"names of a state dict must be text, but it has .*\("):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_number_that_is_none_is_refused_by_name(value, kind):
    bad = torch.tensor([1.0, value, 2.0, value], dtype=kind)
    with pytest.raises(DataError, match=r"norm\.weight has 2 of 4 values that are NaN or infinite"):
        unwrap(BARE | {"norm.weight": bad}, FILE)


def test_a_number_too_large_for_float32_is_refused():
    with pytest.raises(DataError, match=r"norm\.weight has 1 of 1 values that are NaN or inf"):
        unwrap({"norm.weight": torch.tensor([1e300], dtype=torch.float64)}, FILE)


def test_only_the_first_of_many_are_listed():
    bad = {f"blocks.{number}": torch.full((2,), torch.nan) for number in range(9)}
    with pytest.raises(DataError, match=r"blocks\.3 has 2 of 2 .* and 5 more\. The training"):
        unwrap(bad, FILE)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_a_tensor_without_values_is_refused(shape):
    with pytest.raises(DataError, match=r"norm\.weight has shape .*, but no values"):
        unwrap({"norm.weight": torch.empty(shape)}, FILE)
    assert fault(torch.empty(2, device="meta")) == "has shape (2,), but no values"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_of_the_same_value(kind, tmp_path):
    tensors = {"norm.weight": torch.randn(8).to(kind)}
    torch.save(tensors, tmp_path / "x.pth")
    save_file(tensors, tmp_path / "x.safetensors")
    for name in ("x.pth", "x.safetensors"):
        found = read_checkpoint(tmp_path / name).tensors["norm.weight"]
        assert found.dtype == torch.float32
        assert torch.equal(found, tensors["norm.weight"].float())


def test_whole_numbers_such_as_an_index_stay():
    index = torch.arange(3)
    assert unwrap(BARE | {"index": index}, FILE).tensors["index"] is not None
    assert unwrap(BARE | {"index": index}, FILE).tensors["index"].dtype == torch.int64


def test_safetensors_are_known_by_their_content_whatever_the_file_is_called(tmp_path):
    save_file(below("model."), tmp_path / "weights.bin")
    assert read_checkpoint(tmp_path / "weights.bin").tensors.keys() == BARE.keys()


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(DataError, match="must be a checkpoint, but cannot be read"):
        read_checkpoint(tmp_path)
