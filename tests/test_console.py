"""What comes from outside is printed as it is, on every terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from mimkit.console import headed, make_console

ROOT = Path(__file__).parent.parent
ODD = ("[/y]", "[old]", "[bold]x[/]", ":smile:", "a[b")


@pytest.mark.parametrize("text", ODD)
def test_square_brackets_are_no_markup(text, capsys):
    console = make_console()
    console.print(text)
    console.print(headed("wrote", text))
    table = Table(text)
    table.add_row(text)
    console.print(table)
    assert capsys.readouterr().out.count(text) == 4


def test_every_console_is_made_so():
    # A plain one would take a class name or a path for markup, or end in a traceback.
    files = [*(ROOT / "mimkit").rglob("*.py"), *(ROOT / "plugins").glob("*/mimkit_*/*.py")]
    plain = [
        str(file.relative_to(ROOT))
        for file in files
        if file.name != "console.py" and re.search(r"\bConsole\(", file.read_text("utf-8"))
    ]
    assert plain == []
    marked = r"print\(\s*f?\"[^\"]*\[/?(bold|red|yellow|green|dim|)\]"
    assert not [file for file in files if re.search(marked, file.read_text("utf-8"))]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "utf-8"])
def test_what_a_code_page_lacks_becomes_a_question_mark(encoding):
    script = (
        "from rich.table import Table\n"
        "from mimkit.console import make_console\n"
        "for stderr in (False, True):\n"
        "    console = make_console(stderr=stderr)\n"
        "    console.print('花.txt \\udcff é')\n"
        "    table = Table('花'); table.add_row('花.txt'); console.print(table)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        assert ("花.txt ? é" if encoding == "utf-8" else "?.txt ?") in stream.decode(encoding)


@pytest.mark.parametrize("encoding", ["cp1252", pytest.param("ascii", marks=pytest.mark.slow)])
def test_help_and_errors_are_told_on_any_code_page(encoding):
    for arguments, code in ((["--help"], 0), (["check", "花.toml"], 2), (["list", "花"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "mimkit", *arguments],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


def test_without_a_terminal_nothing_is_wrapped_and_with_columns_it_is(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    sentence = "word " * 60
    make_console().print(sentence)
    table = Table("a", "b")
    table.add_row(sentence, sentence)
    make_console().print(table)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == sentence
    assert len(out.splitlines()) == 6
    monkeypatch.setenv("COLUMNS", "40")
    make_console().print(sentence)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40
