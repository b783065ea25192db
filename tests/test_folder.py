import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from mimkit.errors import DataError
from mimkit.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path / "run", writable=True) as folder:
        yield folder


def python(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
    import os, sys, time
    from pathlib import Path
    from mimkit.folder import RunFolder
    with RunFolder(Path(sys.argv[1]), writable=True):
        if len(sys.argv) > 2:
            os.fork()
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(60)
"""


def test_logged_rows_come_back(folder):
    folder.log(50, {"loss/total": 1.5, "lr": 0.1})
    folder.log(100, {"loss/total": 1.25})
    assert folder.metrics_rows() == [
        {"step": 50, "loss/total": 1.5, "lr": 0.1},
        {"step": 100, "loss/total": 1.25},
    ]


def test_numbers_that_are_not_finite_stay_valid_json(folder):
    folder.log(1, {"loss/total": math.nan, "grad_norm": math.inf})
    assert json.loads(folder.metrics.read_text()) == {
        "step": 1,
        "loss/total": None,
        "grad_norm": None,
    }
    assert all(math.isnan(folder.metrics_rows()[0][name]) for name in ("loss/total", "grad_norm"))


def test_an_empty_folder_has_no_rows_results_or_ledger(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.metrics_rows() == []
    assert folder.read_results() == {"results": [], "summaries": [], "differences": []}
    assert folder.read_ledger() == {}


def test_a_half_written_last_line_is_left_out_and_said(folder):
    said = []
    folder.say = said.append
    folder.log(50, {"loss/total": 1.5})
    with folder.metrics.open("a") as file:
        file.write('{"step": 100, "loss/to')
    assert [row["step"] for row in folder.metrics_rows()] == [50]
    assert len(said) == 1
    assert "metrics.jsonl: the last line is half-written" in said[0]


def test_going_on_after_a_half_written_line_gives_whole_lines(folder):
    folder.say = lambda text: None
    folder.log(50, {"loss/total": 1.5})
    with folder.metrics.open("a") as file:
        file.write('{"step": 100, "loss/to')
    folder.truncate(50)
    folder.log(100, {"loss/total": 1.25})
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [
        50,
        100,
    ]


@pytest.mark.parametrize("line", ["torn", "[1]", '{"loss": 1}'])
def test_a_damaged_line_in_the_middle_is_named(folder, line):
    folder.metrics.write_text(f'{line}\n{{"step": 2}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: must be a JSON object"):
        folder.metrics_rows()


def test_truncating_forgets_later_steps_only(folder):
    for step in (50, 100, 150):
        folder.log(step, {"loss/total": math.nan if step == 50 else 1.0})
    folder.truncate(100)
    assert [row["step"] for row in folder.metrics_rows()] == [50, 100]
    assert "NaN" not in folder.metrics.read_text()


def test_truncating_at_zero_begins_anew(folder):
    folder.log(0, {"heldout/loss/patches": 1.4})
    folder.log(50, {"loss/total": 1.0})
    folder.truncate(0)
    assert [row["step"] for row in folder.metrics_rows()] == [0]


def test_results_and_ledger_come_back(folder):
    folder.write_results({"results": [{"value": 0.5}]})
    folder.write_ledger({"steps": 7})
    assert folder.read_results()["results"] == [{"value": 0.5}]
    assert folder.read_results()["summaries"] == []
    assert folder.read_ledger() == {"steps": 7}


def test_results_that_are_not_finite_are_valid_json_and_come_back(folder):
    folder.write_results(
        {
            "results": [{"value": math.nan, "protocol": {"limit": None}}],
            "summaries": [{"mean": math.nan, "std": None, "values": [math.inf, 1.0]}],
            "differences": [{"mean": math.nan, "low": math.nan, "high": None}],
        }
    )
    json.loads(folder.results.read_text(), parse_constant=pytest.fail)
    found = folder.read_results()
    assert math.isnan(found["results"][0]["value"])
    assert found["results"][0]["protocol"] == {"limit": None}
    assert math.isnan(found["summaries"][0]["mean"])
    assert math.isnan(found["summaries"][0]["values"][0])
    assert found["summaries"][0]["std"] is None
    assert found["differences"][0]["low"] is None


@pytest.mark.parametrize("text", ["{torn", "[]"])
def test_damaged_results_are_named(folder, text):
    folder.results.write_text(text)
    with pytest.raises(DataError, match=r"results\.json: must be"):
        folder.read_results()


def test_clearing_keeps_the_folder_claimed(folder):
    folder.log(1, {"lr": 1.0})
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step_00000010.safetensors").touch()
    folder.clear()
    assert {entry.name for entry in folder.path.iterdir()} == {".lock", ".mimkit"}


def test_a_process_that_does_not_write_logs_nothing(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.log(1, {"lr": 1.0})
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_logging_is_said(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(DataError, match=r"metrics\.jsonl: the disk is full"):
        folder.log(3, {"lr": 1.0})


def test_a_second_process_is_refused_and_told_which_runs(tmp_path):
    holder = python(HOLD, tmp_path)
    try:
        number = holder.stdout.readline().strip()
        expected = rf"{tmp_path}: .* process {number} is writing into it.* --out"
        with pytest.raises(DataError, match=expected), RunFolder(tmp_path, writable=True):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(tmp_path, writable=True) as folder:
        folder.log(1, {"lr": 1.0})


def test_workers_that_outlive_a_killed_run_do_not_keep_its_folder(tmp_path):
    holder = python(HOLD, tmp_path, "fork")
    numbers = {int(holder.stdout.readline()) for _ in range(2)}
    holder.kill()
    holder.wait()
    (worker,) = numbers - {holder.pid}
    try:
        with RunFolder(tmp_path, writable=True) as folder:
            folder.log(1, {"lr": 1.0})
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.communicate()
