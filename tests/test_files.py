import errno
import json
import math
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mimkit.cli import app
from mimkit.errors import DataError
from mimkit.files import finite, make_folder, sweep, write_atomic, write_json, write_text
from mimkit.train.tensors import write_tensors

WRITE = {
    "text": lambda path: write_text(path, "text"),
    "json": lambda path: write_json(path, {}),
    "tensors": lambda path: write_tensors(path, {"weight": torch.ones(2)}),
    "a library": lambda path: write_atomic(
        path, lambda temporary: save_file({"weight": torch.ones(2)}, temporary)
    ),
}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@pytest.fixture
def read_only(tmp_path):
    """A folder into which not even root can write."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("root can write everywhere, and nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_file_gets_the_permissions_of_any_new_file(name, mask, tmp_path, umask):
    umask(mask)
    WRITE[name](tmp_path / "file")
    (tmp_path / "plain").touch()
    assert mode(tmp_path / "file") == mode(tmp_path / "plain") == 0o666 & ~mask


def test_json_holds_no_number_that_json_has_no_word_for(tmp_path):
    values = {"a": math.nan, "b": [1.5, math.inf], "c": (-math.inf, {"d": math.nan}), "e": "NaN"}
    write_json(tmp_path / "file.json", values)
    found = json.loads((tmp_path / "file.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.5, None], "c": [None, {"d": None}], "e": "NaN"}
    assert finite(values) == found


@pytest.mark.parametrize("name", WRITE)
def test_what_cannot_be_written_is_one_message(name, read_only, tmp_path):
    with pytest.raises(DataError, match=r"file: must be written, but: .*--out"):
        WRITE[name](read_only / "file")
    (tmp_path / "taken").write_text("a thesis")
    with pytest.raises(DataError, match=r"must be written, but: (Not a directory|File exists)"):
        WRITE[name](tmp_path / "taken" / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: must be written, but: Is a directory"):
        WRITE[name](tmp_path / "folder")
    assert (tmp_path / "taken").read_text() == "a thesis"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "read_only", "taken"]


def test_a_folder_that_cannot_be_made_is_one_message(read_only, tmp_path):
    with pytest.raises(DataError, match="must be written, but"):
        make_folder(read_only / "new")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"must be written, but: (Not a directory|File exists)"):
        make_folder(tmp_path / "file" / "new")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_what_was_there_stays(number, tmp_path):
    def full(temporary):
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))

    write_text(tmp_path / "file", "whole")
    with pytest.raises(DataError, match="the disk is full"):
        write_atomic(tmp_path / "file", full)
    assert (tmp_path / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "mae_shapes", "--preset", "demo"],
        ["compare", "mae_shapes", "selfie_shapes", "--budget", "steps=2"],
        ["plugin", "new", "mimkit-mine"],
    ],
    ids=["run", "compare", "plugin"],
)
def test_a_command_says_that_it_cannot_write(arguments, read_only, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a thesis")
    for out in (read_only / "new", tmp_path / "file", tmp_path / "file" / "below"):
        done = CliRunner(env={"COLUMNS": "100"}).invoke(app, [*arguments, "--out", str(out)])
        assert done.exit_code == 2, done.output
        assert str(out) in done.stderr
    assert (tmp_path / "file").read_text() == "a thesis"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "read_only"]


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_half_written_is_swept_everywhere_below(tmp_path, dead):
    for place in (tmp_path, tmp_path / "checkpoints", tmp_path / "evaluations" / "0-finetune"):
        place.mkdir(parents=True, exist_ok=True)
        (place / f".step_00000004.safetensors.{dead}.tmp").write_bytes(b"half")
    sweep(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_looks_otherwise_or_is_being_written_by_another_process_stays(tmp_path, dead):
    names = [
        f".timm.safetensors.{os.getppid()}.tmp",
        "notes.tmp",
        ".notes.tmp",
        f"step.{dead}.tmp",
        f".step.{dead}.tmp.txt",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f".folder.{dead}.tmp").mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(names)
    assert (tmp_path / f".folder.{dead}.tmp").is_dir()


def test_a_file_of_a_process_with_the_number_of_this_one_is_swept(tmp_path):
    (tmp_path / f".metrics.jsonl.{os.getpid()}.tmp").touch()
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_write_atomic_makes_is_what_sweep_knows(tmp_path):
    seen = []

    def die(temporary):
        seen.append(temporary)
        temporary.write_text("half")
        # As a kill would leave it.
        temporary.rename(temporary.with_name(temporary.name + ".kept"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "results.json", die)
    seen[0].with_name(seen[0].name + ".kept").rename(seen[0])
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())
