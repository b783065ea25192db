"""The documentation holds what it says: blocks run, links lead somewhere, messages exist."""

import ast
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

import mimkit
from mimkit.cli import app
from mimkit.recipe import registry
from mimkit.recipe.schema import load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
OURS = {"mimkit", *(folder.name for folder in (ROOT / "plugins").iterdir())}
PARTS = (
    "maskers",
    "encoders",
    "targets",
    "heads",
    "losses",
    "evaluators",
    "importers",
    "exporters",
)
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^(```.*?^```$)|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str

    @property
    def commands(self):
        """Each command with the output that the page shows below it."""
        return [
            (command, output.splitlines())
            for command, _, output in (
                piece.partition("\n") for piece in re.split(r"^\$ ", self.text, flags=re.M)[1:]
            )
        ]


def blocks():
    return [Block(*found) for found in FENCE.findall(text("writing-a-plugin.md"))]


def text(page):
    return (DOCS / page).read_text(encoding="utf-8")


def parts():
    """What the installed packages of this repository register."""
    return [
        (entry.kind, entry.name)
        for kind in PARTS
        for entry in registry.entries(kind)
        if entry.distribution in OURS
    ]


def nav():
    """The pages that the site's configuration names, in order."""
    listed = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    return re.findall(r"[\w-]+\.md$", listed, re.MULTILINE)


# --- the tutorial ---------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    """The tutorial's package, every block with a title written to its file, and installed."""
    folder = tmp_path / "mimkit-checker"
    for block in blocks():
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
    install(folder)
    return folder


def install(folder):
    """Leaves what `pip install -e` leaves, without a build tool: metadata beside the sources."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups))


DRIVER = """
import json, os, runpy, shlex, sys

def run(program, arguments):
    if program == "mimkit":
        from mimkit.cli import main
        sys.argv = ["mimkit", *arguments]
        main()
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")

kept, codes = os.dup(1), []
for number, command in enumerate(json.load(sys.stdin)):
    with open(f"output-{number}", "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        run(*(lambda words: (words[0], words[1:]))(shlex.split(command)))
        codes.append(0)
    except SystemExit as leaving:
        codes.append(int(leaving.code or 0))
    sys.stdout.flush()
    sys.stderr.flush()
os.dup2(kept, 1)
print(json.dumps(codes))
"""
"""Runs commands one after the other in one process: importing torch takes most of the time."""


def run(commands, folder):
    """Runs commands of the tutorial in its package; returns exit code and output of each."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "MIMKIT_CACHE": str(folder / "cache"),
        "COLUMNS": "250",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env=environment,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    outputs = [(folder / f"output-{n}").read_text(encoding="utf-8") for n in range(len(commands))]
    return list(zip(json.loads(done.stdout), outputs, strict=True))


def shows(output, expected):
    """Whether output has the expected lines in order; "..." stands for anything, also for lines."""
    pattern = r"\s+".join(
        r".*?".join(re.escape(word) for word in line.split("...")) if line != "..." else "(?s:.*?)"
        for line in (" ".join(line.split()) for line in expected)
        if line
    )
    # A line "..." may also stand for no line at all.
    pattern = pattern.replace(r"\s+(?s:.*?)", "(?s:.*?)")
    return re.search(pattern, "\n".join(" ".join(line.split()) for line in output.splitlines()))


def commands():
    found = [pair for b in blocks() if b.language == "console" for pair in b.commands]
    return [(command, output) for command, output in found if command != "pip install -e ."]


def test_every_block_of_the_tutorial_is_a_file_or_a_command_or_text():
    kinds = {(block.language, bool(block.title)) for block in blocks()}
    assert kinds == {("toml", True), ("python", True), ("console", False), ("text", False)}
    programs = {command.split()[0] for command, _ in commands()}
    assert programs == {"mimkit", "python"}


@pytest.mark.slow
def test_tutorial_commands_print_what_the_page_shows(package):
    found = run([command for command, _ in commands()], package)
    for (command, expected), (code, output) in zip(commands(), found, strict=True):
        refused = command.startswith("mimkit check") and "ok" not in expected
        assert code == (2 if refused else 0), f"{command}\n{output}"
        assert shows(output, expected), f"{command}\n{output}"


def test_shows_tells_another_output_apart():
    assert shows("a  b\nc 12 d\nend", ["a b", "c ... d", "...", "end"])
    assert not shows("a b\nc 12 e\nend", ["a b", "c ... d", "end"])
    assert not shows("a b\nx\nend", ["a b", "end"])


# --- pages ----------------------------------------------------------------------------------------


def test_nav_names_every_page_once():
    assert sorted(nav()) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_internal_links_lead_to_files_and_headings(page):
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {link}"
        assert target.is_relative_to(DOCS), f"{page.name}: {link} leads out of the site"
        if anchor:
            included = re.sub(
                r"^<!-- include: (.+) -->$",
                lambda match: (ROOT / match[1]).read_text(encoding="utf-8"),
                target.read_text(encoding="utf-8"),
                flags=re.MULTILINE,
            )
            headings = re.findall(r"^#+ (.+)$", included, re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: {link}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_have_the_options_that_pages_give_them(page):
    commands = get_command(app).commands
    for found in re.findall(r"^ *mimkit (.*(?:\\\n.*)*)", page.read_text("utf-8"), re.MULTILINE):
        name, _, rest = found.replace("\\\n", " ").partition(" ")
        if name in commands and name != "plugin":  # which has commands of its own
            known = {option for each in commands[name].params for option in each.opts}
            given = set(re.findall(r" (--[a-z-]+)", rest.partition("#")[0]))
            assert given <= known, f"{page.name}: {found}"


def slug(heading):
    kept = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)


def test_pictures_need_nothing_from_elsewhere():
    for picture in DOCS.glob("images/*.svg"):
        drawn = picture.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in drawn


def test_recipes_on_their_page_are_valid(tmp_path):
    first, preset, ablation = (Block(*found).text for found in FENCE.findall(text("recipes.md")))
    (tmp_path / "first.toml").write_text(first + preset)
    (tmp_path / "ablation.toml").write_text(ablation)
    assert load(str(tmp_path / "first.toml"), preset="small").encoder.options["depth"] == 2
    assert list(load(str(tmp_path / "ablation.toml")).losses) == ["tokens"]


# --- generated tables -----------------------------------------------------------------------------


@functools.cache
def hook():
    source = (DOCS / "hooks" / "reference.py").read_text(encoding="utf-8")
    names = {"__file__": str(DOCS / "hooks" / "reference.py"), "__name__": "reference"}
    exec(compile(source, names["__file__"], "exec"), names)
    return names


@pytest.mark.parametrize(("kind", "name"), parts(), ids=lambda word: word)
def test_every_part_has_its_marker_on_one_page(kind, name):
    marker = f"<!-- options: {kind} {name} -->"
    assert sum(page.read_text(encoding="utf-8").count(marker) for page in PAGES) == 1


def test_every_marker_is_filled():
    fill = hook()["on_page_markdown"]
    for page in PAGES:
        assert not re.search(r"^<!-- \w+(:.*)? -->$", fill(page.read_text()), re.MULTILINE), page


def test_table_of_options_is_that_of_the_signature():
    table = hook()["fill"]("options", "maskers random")
    assert (
        "| `mask_ratio` | a number from 0 to 1 | required | share of the patches that is masked"
        in table
    )
    assert (
        "| `unit` | an integer from 1 to 65,536 | `1` | side, in patches, of the squares" in table
    )
    assert "*Source:* MAE, arXiv 2111.06377, section 3 (drop);" in table


def test_table_of_keys_gives_limits_and_defaults():
    table = hook()["fill"]("keys", "train")
    assert "| `momentum` | a number of at least 0 and below 1 | `0.9` | of SGD |" in table
    assert "| `batch_size` | an integer from 1 to 1,000,000 | required | images of one" in table


def test_every_name_for_plugin_authors_is_in_the_reference():
    listed = set(re.findall(r"^::: mimkit\.(?:api\.)?(\w+)$", text("reference.md"), re.MULTILINE))
    assert listed == set(mimkit.__all__)


# --- messages -------------------------------------------------------------------------------------


def quoted_messages():
    """First cells of the tables of messages."""
    tables = text("troubleshooting.md") + text("channels.md").partition("## What is refused")[2]
    return re.findall(r"^\| `([^`]+)` \|", tables, re.MULTILINE)


@functools.cache
def literals():
    """Every text in the sources, "..." where a value is put in."""
    files = [*ROOT.glob("mimkit/**/*.py"), *ROOT.glob("plugins/*/mimkit_*/**/*.py")]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                pieces = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                found.add("".join(map(str, pieces)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def occurs(message):
    """Whether one text of the sources has all pieces of a message, in order."""
    pattern = re.compile(".*?".join(map(re.escape, message.split("..."))), re.DOTALL)
    return any(pattern.search(literal) for literal in literals())


@pytest.mark.parametrize("message", quoted_messages())
def test_quoted_message_occurs_in_the_sources(message):
    assert len(message.replace("...", "")) >= 12, "too short to be distinctive"
    assert occurs(message)


def test_a_message_that_does_not_exist_is_noticed():
    assert occurs("must be KEY=VALUE, such as ... 40") is False
    assert occurs("a text that nobody raises") is False
    assert quoted_messages()


# --- the site -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    command = f"-m mkdocs build --strict -f .mkdocs.yml -d {shlex.quote(str(tmp_path))}"
    done = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # the theme's own advertisement
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, textwrap.indent(done.stderr, "  ")
    assert "<!-- options" not in (tmp_path / "maskers.html").read_text(encoding="utf-8")
