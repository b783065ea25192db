"""How a command ends: one message, and the exit code that was promised."""

import errno
import os

import pytest
from typer.testing import CliRunner

import mimkit
from mimkit.cli import app
from mimkit.errors import DataError, ProcessLostError, TrainingError, mendable
from mimkit.recipe import registry
from mimkit.recipe.describe import listing


def ends(monkeypatch, error, *options):
    def fail(_):
        raise error

    monkeypatch.setattr(listing, "show_all", fail)
    return CliRunner().invoke(app, [*options, "list"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x[/y]"),
            "/x[/y]: Permission denied.",
        ),
        (OSError(errno.EROFS, "Read-only file system", "runs"), "Choose a place that can be"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "A file is where a folder"),
        (FileExistsError(errno.EEXIST, "File exists", "out"), "A file is where a folder"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 9999), "Choose a shorter name."),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device. Free some"),
        (ConnectionError("the server hung up"), "the server hung up."),
        (OSError(), "OSError"),
        (MemoryError(), "memory is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "memory is full"),
    ],
)
def test_what_the_system_refuses_is_one_message_and_exit_code_2(monkeypatch, error, said):
    result = ends(monkeypatch, error)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < 700


@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError(), RuntimeError("[/no] tag")])
def test_a_fault_of_the_program_is_one_line_and_exit_code_1(monkeypatch, error):
    result = ends(monkeypatch, error)
    assert result.exit_code == 1
    assert "a fault of mimkit" in result.stderr
    assert "--debug" in result.stderr
    assert str(error) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_fault_of_a_plugin_is_told_as_its(monkeypatch, tmp_path):
    (tmp_path / "mimkit_odd.py").write_text("def fail(_):\n    raise KeyError('x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = registry.Entry("maskers", "odd", "mimkit-odd", "1.0", "mimkit_odd:fail")
    monkeypatch.setattr(registry, "entries", lambda kind: [entry] if kind == "maskers" else [])
    monkeypatch.setattr(listing, "show_all", __import__("mimkit_odd").fail)
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 1
    assert "a fault of mimkit-odd" in result.stderr


def test_debug_shows_the_traceback_of_a_fault(monkeypatch):
    assert "Traceback" in ends(monkeypatch, KeyError("x"), "--debug").stderr


def test_a_comparison_is_told_why_its_run_failed(monkeypatch, tmp_path):
    file = tmp_path / "why.txt"
    monkeypatch.setenv("MIMKIT_ERROR_FILE", str(file))
    ends(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "x"))
    assert file.read_text("utf-8").startswith("x: Permission denied.")
    # Its log keeps the traceback of a fault.
    assert "Traceback" in ends(monkeypatch, KeyError("x")).stderr
    assert "a fault of mimkit" in file.read_text("utf-8")
    monkeypatch.setenv("MIMKIT_ERROR_FILE", str(tmp_path / "no" / "folder"))
    assert ends(monkeypatch, KeyError("x")).exit_code == 1


def test_an_answer_that_nobody_reads_is_no_fault(monkeypatch):
    assert "fault" not in ends(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe")).stderr


def test_the_functions_raise_what_the_command_line_tells(tiny, tmp_path):
    with pytest.raises(DataError, match="must be written, but: Not a directory"):
        mimkit.run(tiny, out=tiny)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_cannot_be_written_is_told(tiny, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied"):
        mimkit.run(tiny, out=tmp_path / "runs")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="of its own"), mendable():
        raise RuntimeError("of its own")
    with pytest.raises(TrainingError), mendable():
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")


def test_a_process_that_another_took_along_says_so_and_hides_no_cause(monkeypatch, tmp_path):
    told = tmp_path / "why.txt"
    monkeypatch.setenv("MIMKIT_ERROR_FILE", str(told))
    assert ends(monkeypatch, ProcessLostError("another has ended")).exit_code == 75
    assert told.read_text() == "another has ended"
    assert ends(monkeypatch, TrainingError("the cause")).exit_code == 2
    assert ends(monkeypatch, ProcessLostError("another has ended")).exit_code == 75
    assert told.read_text() == "the cause"
