"""Installs the wheels into a folder of its own, and sees whether anything is missing."""

import filecmp
import importlib
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from on_gpu.needs import needs
from on_gpu.recipes import ROOT
from on_gpu.work import Work


def run(work: Work) -> None:
    """Tells how many wheels there were; fails if a requirement of theirs is not met."""
    wheels = sorted(work.bundle.glob("wheels/*.whl"))
    # The machine's own packages stay as they are: where its pip installs to is not ours.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    options = ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"]
    subprocess.run([*pip, *options, "--target", work.site, *wheels], check=True)
    work.tell("wheels", len(wheels))
    work.tell("files changed since they were made", lay_over(ROOT, work.site))
    importlib.invalidate_caches()
    wrong = unmet([wheel.name.split("-")[0] for wheel in wheels])
    for each in wrong:
        work.tell("not met", each)
    if wrong:
        sys.exit(f"not met: {', '.join(wrong)}")


def lay_over(root: Path, site: Path) -> int:
    """Puts the tree's code over that of the wheels: what was mended after they were made counts.

    Returns: how many files differed.
    """
    packages = {root / "mimkit": site / "mimkit", root / "recipes": site / "mimkit" / "recipes"}
    for file in root.glob("plugins/*/*/__init__.py"):
        packages[file.parent] = site / file.parent.name
    changed = 0
    for source, target in packages.items():
        for file in (file for file in source.rglob("*") if file.is_file()):
            held = target / file.relative_to(source)
            if "__pycache__" in file.parts or (held.is_file() and filecmp.cmp(file, held, False)):
                continue
            held.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, held)
            changed += 1
    return changed


def unmet(names: list[str]) -> list[str]:
    """Returns the requirements of installed distributions, and of these, that are not met."""
    wrong: list[str] = []
    seen: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need}, which is not there")
            continue
        if not need.specifier.contains(found.version, prereleases=True):
            wrong.append(f"{need}, as it is {found.version}")
        if name not in seen:
            seen.add(name)
            waiting += needs(name, found.requires or [], {})
    return sorted(set(wrong))
