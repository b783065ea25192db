import os
import subprocess
import sys

import pytest

from mimkit.files import sweep, write_atomic


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
