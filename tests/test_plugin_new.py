"""``mimkit plugin new``: what it writes works at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimkit import RecipeError
from mimkit.plugin.new import KINDS, write_plugin


def call(*command: str, cwd: Path, site: Path | None = None) -> str:
    """Runs a program; returns what it says."""
    paths = [str(site)] if site else []
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [KINDS, ("masker", "target"), ("head",)], ids="+".join)
def test_it_installs_passes_its_tests_and_the_checks(kinds, tmp_path):
    folder = write_plugin("mimkit-mine", kinds, tmp_path / "mimkit-mine")
    python, site = sys.executable, tmp_path / "site"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    call(*pip, "--no-build-isolation", "--target", str(site), str(folder), cwd=tmp_path)
    said = call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, site=site)
    assert " passed" in said
    assert "failed" not in said
    assert call(python, "-m", "mimkit", "check", "mimkit-mine", cwd=tmp_path, site=site).endswith(
        "ok\n"
    )
    call(
        *(python, "-m", "mimkit", "run", "mine_shapes", "--out", str(tmp_path / "runs")),
        *("--set", "train.total_steps=2", "--set", "train.batch_size=8"),
        *("--set", "data.num_images=64", "--set", "data.num_test_images=32"),
        cwd=tmp_path,
        site=site,
    )
    assert (tmp_path / "runs" / "mine_shapes" / "0" / "report.html").is_file()


@pytest.mark.parametrize("kinds", [KINDS, *([kind] for kind in KINDS)], ids="+".join)
def test_it_is_clean(kinds, tmp_path):
    folder = write_plugin("mimkit-mine", kinds, tmp_path / "mimkit-mine")
    tool = (sys.executable, "-m", "ruff")
    call(*tool, "check", "--no-cache", ".", cwd=folder)
    call(*tool, "format", "--check", "--no-cache", ".", cwd=folder)
    for kind in KINDS:
        assert (folder / "mimkit_mine" / f"{kind}.py").exists() == (kind in kinds)


@pytest.mark.slow
def test_it_is_typed(tmp_path):
    folder = write_plugin("mimkit-mine", KINDS, tmp_path / "mimkit-mine")
    call(sys.executable, "-m", "mypy", cwd=folder)


def test_what_exists_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years")
    with pytest.raises(RecipeError, match="exists already and is left as it is"):
        write_plugin("mine", ["masker"], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="exists already"):
        write_plugin("mine", ["masker"], tmp_path / "file")


@pytest.mark.parametrize("name", ["Mine", "mimkit_mine", "../mine", "-mine", "mine-", ""])
def test_a_name_that_is_no_package_name_is_refused(name, tmp_path):
    with pytest.raises(RecipeError, match="must be lower-case letters and digits"):
        write_plugin(name, ["masker"], tmp_path / "x")


def test_an_unknown_kind_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match=r"has 'maskers'\. Did you mean 'masker'\?"):
        write_plugin("mine", ["maskers"], tmp_path / "x")
    assert not (tmp_path / "x").exists()
