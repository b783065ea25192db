"""Nothing of the user's is ever lost: which folders are mimkit's, and what it removes there."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mimkit import ownership
from mimkit.cli import app
from mimkit.errors import DataError
from mimkit.folder import RunFolder
from mimkit.pipeline.exporting import export_run
from mimkit.pipeline.run import run
from mimkit.recipe.schema import load, resolved

SHORT = ("train.total_steps=2", "evaluate=[]")


def mimkit(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in arguments])


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def project(tmp_path, tiny, monkeypatch):
    """What a user has: a recipe, a thesis, a repository. It is where commands are typed."""
    folder = tmp_path / "project"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "thesis.txt").write_text("ten years")
    shutil.copy(tiny, folder / "recipe.toml")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def folder(tiny, tmp_path):
    """A finished run."""
    return run(load(str(tiny), overrides=SHORT), out=tmp_path / "runs", device="cpu")


@pytest.mark.parametrize("fresh", [[], ["--fresh"]], ids=["", "fresh"])
def test_a_folder_with_a_recipe_is_read_and_nothing_in_it_is_touched(project, tmp_path, fresh):
    before = content(project)
    settings = [word for each in SHORT for word in ("--set", each)]
    done = mimkit("run", project, *fresh, *settings, "--device", "cpu", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert content(project) == before
    assert f"its run lies in {tmp_path / 'out' / 'tiny' / '0'}" in done.output
    assert (tmp_path / "out" / "tiny" / "0" / "report.html").is_file()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_is_never_written_into_a_folder_that_is_not_mimkits(project, fresh):
    before = content(project)
    recipe = load("recipe.toml", overrides=SHORT)
    with pytest.raises(DataError, match=r"project: must be empty or made by mimkit run, but holds"):
        run(recipe, folder=project, device="cpu", fresh=fresh)
    assert content(project) == before


def test_fresh_removes_what_mimkit_wrote_and_names_what_else_there_is(folder, capsys):
    own = content(folder)
    foreign = {
        "notes.txt": "mine",
        "checkpoints/best.safetensors": "mine",
        "pictures/figure_3.png": "mine",
        ".git/HEAD": "mine",
    }
    for name, text in foreign.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with RunFolder(folder, writable=True) as opened:
        opened.clear()
    left = {name: text.encode() for name, text in foreign.items()}
    assert content(folder) == left | {name: content(folder)[name] for name in (".lock", ".mimkit")}
    assert own.keys() - content(folder).keys() == own.keys() - {".lock", ".mimkit"}
    said = " ".join(capsys.readouterr().out.split())
    assert "did not write it: .git, checkpoints/best.safetensors, notes.txt, pictures/fig" in said


def test_everything_that_a_run_writes_is_known_by_name(folder):
    with RunFolder(folder, writable=True) as opened:
        opened.set_aside()
        assert sorted(path.name for path in folder.iterdir()) == [".lock", ".mimkit"]


def test_a_link_is_removed_and_not_what_it_leads_to(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.txt").write_text("ten years")
    (folder / "evaluations").mkdir(exist_ok=True)
    (folder / "evaluations" / "0-knn").symlink_to(tmp_path / "elsewhere")
    with RunFolder(folder, writable=True) as opened:
        opened.clear()
    assert (tmp_path / "elsewhere" / "thesis.txt").read_text() == "ten years"


def test_a_hand_written_recipe_in_a_run_folder_is_never_overwritten(folder, project):
    shutil.copy(project / "recipe.toml", folder / "recipe.toml")
    before = content(folder)
    for fresh in (False, True):
        with pytest.raises(DataError, match=r"recipe\.toml: must be a recipe that mimkit wrote"):
            run(load("recipe.toml", overrides=SHORT), folder=folder, device="cpu", fresh=fresh)
        assert content(folder) == before


def test_a_run_of_a_version_that_did_not_mark_its_folders_goes_on(folder):
    (folder / ".mimkit").unlink()
    done = mimkit("run", folder, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert json.loads((folder / ".mimkit").read_text())["kind"] == "run"
    assert "read as a recipe" not in done.output


def test_a_recipe_that_was_written_out_is_no_run_by_itself(project):
    (project / "recipe.toml").write_text(resolved(load("recipe.toml")))
    assert ownership.kind_of(project) is None
    (project / "ledger.json").write_text('{"mimkit": "0.1.0"}')  # copied there, for the record
    (project / "checkpoints").mkdir()
    (project / "checkpoints" / "step_1.json").write_text('{"step": 1}')  # another program's
    assert ownership.kind_of(project) is None


def test_an_empty_folder_is_taken(tmp_path):
    with RunFolder(tmp_path / "run", writable=True):
        pass
    (tmp_path / "empty").mkdir()
    with RunFolder(tmp_path / "empty", writable=True):
        pass
    assert ownership.kind_of(tmp_path / "empty") == "run"


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_folder_is_taken_where_a_kill_came_before_its_mark(tmp_path, kind):
    (tmp_path / f".{ownership.MARKER}.123.tmp").write_text("{")
    ownership.claim(tmp_path, kind)
    (tmp_path / "other.tmp").touch()
    (tmp_path / ownership.MARKER).unlink()
    with pytest.raises(DataError, match=r"but holds other\.tmp\."):
        ownership.claim(tmp_path, kind)


def test_runs_and_comparisons_do_not_share_a_folder(tmp_path):
    ownership.claim(tmp_path / "one", "comparison")
    with (
        pytest.raises(
            DataError, match="must be a folder of mimkit run, but was made by mimkit com"
        ),
        RunFolder(tmp_path / "one", writable=True),
    ):
        pass


def test_a_comparison_is_never_written_into_a_folder_that_is_not_mimkits(project):
    before = content(project)
    done = mimkit("compare", "recipe.toml", "--budget", "steps=2", "--out", project)
    assert done.exit_code == 2
    assert "must be empty or made by mimkit compare, but holds .git, recipe.toml" in done.stderr
    assert content(project) == before


def test_an_import_is_never_written_into_a_folder_that_is_not_mimkits(project):
    before = content(project)
    done = mimkit("import", "beit", project / "thesis.txt", "--out", project)
    assert done.exit_code == 2
    assert "must be empty or made by mimkit run" in done.stderr
    assert content(project) == before


def test_an_export_writes_over_nothing_but_an_earlier_export(folder, project):
    console = Console(quiet=True)
    for _ in range(2):
        export_run(folder, "safetensors", None, console)
    (project / "thesis.json").write_text("{}")
    before = content(project)
    for name in ("thesis.txt", "thesis.safetensors", "new.json"):  # a thesis.json is beside them
        with pytest.raises(DataError, match=r"left as it is|must end in \.safe"):
            export_run(folder, "safetensors", project / name, console)
    assert content(project) == before
    (folder / "results.json").write_text("{}")
    with pytest.raises(DataError, match=r"results\.json: exists already"):
        export_run(folder, "safetensors", folder / "results.safetensors", console)
    assert (folder / "results.json").read_text() == "{}"


def test_an_export_from_a_folder_that_mimkit_did_not_make_writes_over_nothing(folder):
    (folder / ".mimkit").unlink()
    shutil.rmtree(folder / "checkpoints")
    (folder / "recipe.toml").unlink()
    (folder / "timm.safetensors").write_text("mine")
    with pytest.raises(DataError, match="exists already and is left as it is"):
        export_run(folder, "timm", None, Console(quiet=True))
    assert (folder / "timm.safetensors").read_text() == "mine"
