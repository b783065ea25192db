"""Reading checkpoint files, whole and broken ones."""

import argparse
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mimkit import DataError, read_checkpoint

TENSORS = {"cls_token": torch.ones(1, 1, 4), "norm.weight": torch.arange(4.0)}


class Stranger:
    """Some class of another program."""


def save(path, content):
    torch.save(content, path)
    return path


def test_a_released_checkpoint_is_read_with_its_programs_options(tmp_path):
    content = {
        "model": {f"module.{name}": tensor for name, tensor in TENSORS.items()},
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": np.float64(1.5e-3)}]},
        "epoch": 799,
        "args": argparse.Namespace(drop_path=0.1, betas=None, window_size=(14, 14)),
    }
    file = save(tmp_path / "beit.pth", content)
    found = read_checkpoint(file)
    assert found.tensors.keys() == TENSORS.keys()
    assert torch.equal(found.tensors["norm.weight"], TENSORS["norm.weight"])
    assert found.args == {"drop_path": 0.1, "betas": None, "window_size": (14, 14)}


def test_numbers_of_numpy_1_are_read(tmp_path):
    file = save(tmp_path / "new.pth", {"model": TENSORS, "lr": np.float64(0.5)})
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(old, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, content.replace(b"numpy._core.mul", b"numpy.core.mul"))
    assert read_checkpoint(old).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("content", [TENSORS, {"model": TENSORS}, {"module": TENSORS, "epoch": 1}])
def test_a_state_dict_is_found_where_programs_put_it(tmp_path, content):
    assert read_checkpoint(save(tmp_path / "x.pkl", content)).tensors.keys() == TENSORS.keys()


def test_safetensors_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    found = read_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(found.tensors["cls_token"], TENSORS["cls_token"])
    assert found.args == {}


def test_other_classes_are_named_and_not_made(tmp_path):
    file = save(tmp_path / "x.pth", {"model": TENSORS, "config": Stranger()})
    with pytest.raises(DataError, match=r"object of \S*Stranger; making it could run any code"):
        read_checkpoint(file)


def test_what_a_file_wants_to_run_is_not_run(tmp_path):
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self):
            return witness.touch, ()

    file = save(tmp_path / "x.pth", {"model": TENSORS, "attack": Attack()})
    with pytest.raises(DataError, match="so nothing was loaded"):
        read_checkpoint(file)
    assert not witness.exists()


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_the_log_of_a_download_is_recognised(tmp_path, suffix):
    file = tmp_path / f"beit_base{suffix}"
    file.write_text("--2024-05-01 10:00:00--  https://host/beit\nResolving host… 10.0.0.1\n" * 20)
    with pytest.raises(DataError, match=r"text that begins with '--2024-05-01.*the file with -O"):
        read_checkpoint(file)


@pytest.mark.parametrize("kept", [10, 100, -20])
def test_cut_files_are_recognised(tmp_path, kept):
    whole = save(tmp_path / "x.pth", {"model": TENSORS}).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:kept])
    with pytest.raises(DataError, match=r"cut\.pth: .*damaged, cut off or something else"):
        read_checkpoint(tmp_path / "cut.pth")
    save_file(TENSORS, tmp_path / "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:kept])
    with pytest.raises(DataError, match="damaged, cut off or something else"):
        read_checkpoint(tmp_path / "cut.safetensors")


def test_an_empty_file_is_recognised(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(DataError, match="must be a checkpoint, but is empty"):
        read_checkpoint(tmp_path / "empty.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a state dict, but holds a list"),
        ({"weights": {"a": 1}, "epoch": 3}, "its entries are 'weights', 'epoch'"),
        ({"model": {}}, "its entries are none"),
    ],
)
def test_other_content_is_told(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_checkpoint(save(tmp_path / "x.pth", content))
