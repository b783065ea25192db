"""Real distributions, installed by pip: what a user is told when one of them is at fault."""

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

PART = '''
from mimkit.builtin.maskers import RandomMasker

class Mine(RandomMasker):
    """Hides patches.

    Args:
        mask_ratio: how many.

    Source: own.
    """

    def __init__(self, geometry, *, mask_ratio: float = 0.5) -> None:
        super().__init__(geometry, mask_ratio=mask_ratio, mode="replace")
'''


def install(site: Path, name: str, code: str, *, version="1.0", points=None, contract=None):
    """Makes a wheel with one module and installs it by pip into a folder."""
    module = name.replace("-", "_")
    groups = {"mimkit.maskers": {"mine": f"{module}:Mine"}} if points is None else points
    if contract is not None:
        groups = {**groups, "mimkit.contract": {str(contract): module}}
    info = f"{module}-{version}.dist-info"
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    files = {
        f"{module}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(lines) + "\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    wheel = site.parent / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, textwrap.dedent(text))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--upgrade", "--target", str(site), str(wheel)],
        check=True,
    )


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site"


def mimkit(site: Path, *arguments: str) -> tuple[int, str]:
    """Runs the program where these distributions are installed: exit code, and all it says."""
    done = subprocess.run(
        [sys.executable, "-m", "mimkit", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def recipe(tiny):
    """The tiny recipe with the masker of these distributions."""
    text = tiny.read_text().replace('part = "random"\nmask_ratio = 0.5\nmode = "replace"', "{part}")
    assert "{part}" in text

    def write(part="mine"):
        tiny.write_text(text.replace("{part}", f'part = "{part}"'))
        return str(tiny)

    return write


def test_an_installed_part_is_listed_checked_and_used(site, recipe, tmp_path):
    install(site, "mimkit-one", PART, contract=1)
    code, said = mimkit(site, "list", "maskers")
    assert code == 0
    assert "mine mimkit-one 1.0" in said
    assert mimkit(site, "check", recipe())[0] == 0
    code, said = mimkit(site, "check", "mimkit-one")
    assert (code, said[-2:]) == (0, "ok"), said


@pytest.mark.slow
def test_two_distributions_with_one_name_are_both_named_and_one_can_be_picked(site, recipe):
    install(site, "mimkit-one", PART)
    install(site, "mimkit-two", PART)
    code, said = mimkit(site, "check", recipe())
    assert code == 2
    assert "Write 'mimkit-one:mine' or 'mimkit-two:mine'" in said
    assert mimkit(site, "check", recipe("mimkit-two:mine"))[0] == 0


@pytest.mark.slow
def test_a_plugin_that_fails_on_import_harms_only_recipes_that_name_it(site, recipe, tiny):
    install(site, "mimkit-one", "raise RuntimeError('no licence')")
    install(site, "mimkit-two", PART, points={"mimkit.maskers": {"other": "mimkit_two:Mine"}})
    assert mimkit(site, "list")[0] == 0
    assert mimkit(site, "check", recipe("other"))[0] == 0
    code, said = mimkit(site, "check", recipe())
    assert code == 2
    assert "masker 'mine' (mimkit-one 1.0) cannot be loaded" in said
    assert "RuntimeError: no licence" in said


@pytest.mark.slow
def test_a_part_of_the_wrong_base_is_told_with_its_distribution(site, recipe):
    install(site, "mimkit-one", "class Mine:\n    pass\n")
    install(site, "mimkit-two", PART, points={"mimkit.losses": {"odd": "mimkit_two:Mine"}})
    code, said = mimkit(site, "check", recipe())
    assert code == 2
    assert "masker 'mine' (mimkit-one 1.0) must be a subclass of mimkit.Masker" in said
    code, said = mimkit(site, "check", "mimkit-two")
    assert code == 2
    assert "loss 'odd' (mimkit-two 1.0) must be a subclass of mimkit.Loss" in said


@pytest.mark.slow
def test_a_constructor_that_breaks_the_rule_is_told_with_its_distribution(site, recipe):
    install(site, "mimkit-one", PART.replace("*, mask_ratio: float = 0.5", "**kwargs"))
    install(site, "mimkit-two", PART.replace(": float = 0.5", "=0.5"), version="2.0")
    code, said = mimkit(site, "check", recipe("mimkit-one:mine"))
    assert code == 2
    assert "masker 'mine' (mimkit-one 1.0): its constructor must be __init__" in said
    assert "'**kwargs' hides its options" in said
    code, said = mimkit(site, "check", recipe("mimkit-two:mine"))
    assert code == 2
    assert "(mimkit-two 2.0): its constructor must be" in said
    assert "'mask_ratio' has no type. Tell the authors of mimkit-two." in said


@pytest.mark.slow
def test_another_version_of_the_contract_is_told_with_both_numbers(site, recipe):
    install(site, "mimkit-one", PART, contract=2)
    install(site, "mimkit-two", PART, contract=0)
    assert mimkit(site, "list", "maskers")[0] == 0
    code, said = mimkit(site, "check", recipe("mimkit-one:mine"))
    assert code == 2
    assert "must be made for version 1 of mimkit's contract" in said
    assert "mimkit-one is made for version 2. Update mimkit (pip install -U mimkit)" in said
    code, said = mimkit(site, "check", recipe("mimkit-two:mine"))
    assert code == 2
    assert "mimkit-two is made for version 0. Update it: pip install -U mimkit-two" in said


@pytest.mark.slow
def test_a_run_whose_plugin_is_gone_says_what_to_install(site, recipe, tmp_path):
    install(site, "mimkit-one", PART)
    install(site, "mimkit-two", PART, points={"mimkit.maskers": {"other": "mimkit_two:Mine"}})
    out = tmp_path / "runs"
    settings = ("--set", "train.total_steps=2", "--set", "evaluate=[]")
    code, said = mimkit(site, "run", recipe(), "--out", str(out), "--device", "cpu", *settings)
    assert code == 0, said
    shutil.rmtree(site)
    install(site, "mimkit-two", PART, points={"mimkit.maskers": {"other": "mimkit_two:Mine"}})
    code, said = mimkit(site, "run", str(out / "tiny" / "0"))
    assert code == 2
    assert "masker 'mine' is offered by no installed distribution" in said
    assert "The run was made with mimkit-one 1.0: pip install mimkit-one==1.0" in said
