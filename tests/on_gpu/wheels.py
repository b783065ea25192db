"""Gathers what a machine with a GPU lacks: ``python -m on_gpu.wheels``, from the project's folder.

Wheels of mimkit and its plugins are built from the tree. Whatever these need, and what that needs,
is brought as far as `machine.txt` does not name it.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from on_gpu.__main__ import BUNDLE
from on_gpu.needs import needs

MACHINE: Final = Path(__file__).with_name("machine.txt")
MOST_BYTES: Final = 64 * 2**20
"""What travels to such a machine: this folder and the tree."""
_PYTHON: Final = "3.12"
_DATA: Final = ("cifar10",)


def machine() -> dict[str, Requirement]:
    """Returns what such a machine has, by its name."""
    lines = MACHINE.read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in found}


def build(folder: Path) -> list[Path]:
    """Builds the wheels of mimkit and the plugins; returns them."""
    projects = [
        ".",
        *(str(file.parent) for file in sorted(Path("plugins").glob("*/pyproject.toml"))),
    ]
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *projects)
    return sorted(folder.glob("*.whl"))


def bring(folder: Path, made: list[Path]) -> None:
    """Downloads, level by level, what the wheels in a folder need and the machine lacks."""
    there = machine()
    known = {*there, *(_distribution(wheel) for wheel in made)}
    level = made
    while level:
        wanted: dict[str, str] = {}
        for wheel in level:
            for need in _needs(wheel):
                name = canonicalize_name(need.name)
                if name in there:
                    _refuse_older(there[name], need, wheel)
                elif name not in known:
                    wanted[name] = ",".join(filter(None, [wanted.get(name), str(need.specifier)]))
        before = set(folder.glob("*.whl"))
        if wanted:
            _download(folder, [f"{name}{specifier}" for name, specifier in wanted.items()])
        known |= wanted.keys()
        level = sorted(set(folder.glob("*.whl")) - before)


def copy_data(folder: Path) -> None:
    """Copies the data that cannot be made there, from ``$MIMKIT_DATA``."""
    held = os.environ.get("MIMKIT_DATA")
    for name in _DATA:
        source = Path(held or ".") / name
        if held is None or not source.is_dir():
            sys.exit(
                f"MIMKIT_DATA: must be a folder that holds {name}/, but is {held or 'not set'}."
            )
        shutil.copytree(source, folder / name)


def travels(bundle: Path) -> tuple[int, int]:
    """Returns the bytes of the bundle, and of the tree without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    tree = [Path(name) for name in listed.split("\0") if name]
    return _bytes([*bundle.rglob("*")]), _bytes(tree)


def main() -> None:
    """Makes the bundle anew and says what it holds; exits if that is too large."""
    shutil.rmtree(BUNDLE, ignore_errors=True)
    wheels = BUNDLE / "wheels"
    wheels.mkdir(parents=True)
    bring(wheels, build(wheels))
    copy_data(BUNDLE / "data")
    for wheel in sorted(wheels.glob("*.whl")):
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    bundle, tree = travels(BUNDLE)
    said = f"{bundle / 2**20:.1f} MiB in {BUNDLE} and {tree / 2**20:.1f} MiB of the tree"
    if bundle + tree > MOST_BYTES:
        sys.exit(f"{said} are more than the {MOST_BYTES / 2**20:.0f} MiB that may travel.")
    print(f"{said}: {(bundle + tree) / MOST_BYTES:.0%} of what may travel")


def _needs(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(name).decode())
    target = {
        "python_version": _PYTHON,
        "python_full_version": f"{_PYTHON}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    return needs(told["Name"], told.get_all("Requires-Dist") or [], target)


def _refuse_older(there: Requirement, need: Requirement, wheel: Path) -> None:
    """Exits where a version that the machine is known to have is not what a wheel asks for."""
    for version in (each.version for each in there.specifier if each.operator == "=="):
        if not need.specifier.contains(version, prereleases=True):
            sys.exit(f"{wheel.name}: needs {need}, but the machine has {there} ({MACHINE}).")


def _download(folder: Path, wanted: list[str]) -> None:
    platforms = [
        "manylinux1",
        "manylinux2014",
        *(f"manylinux_2_{n}" for n in (17, 24, 27, 28, 31, 34)),
    ]
    _pip(
        "download",
        "--no-deps",
        "--only-binary=:all:",
        f"--python-version={_PYTHON}",
        "--implementation=cp",
        *(f"--platform={name}_x86_64" for name in platforms),
        f"--dest={folder}",
        *wanted,
    )


def _pip(*words: str) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *words], check=True)


def _distribution(wheel: Path) -> str:
    return canonicalize_name(wheel.name.split("-")[0])


def _bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
