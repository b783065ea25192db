"""Installs the wheels into a folder of its own, and sees whether anything is missing."""

import importlib
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from on_gpu.needs import needs
from on_gpu.work import Work


def run(work: Work) -> None:
    """Tells how many wheels there were; fails if a requirement of theirs is not met."""
    wheels = sorted(work.bundle.glob("wheels/*.whl"))
    # The machine's own packages stay as they are: where its pip installs to is not ours.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    options = ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"]
    subprocess.run([*pip, *options, "--target", work.site, *wheels], check=True)
    work.tell("wheels", len(wheels))
    importlib.invalidate_caches()
    wrong = unmet([wheel.name.split("-")[0] for wheel in wheels])
    for each in wrong:
        work.tell("not met", each)
    if wrong:
        sys.exit(f"not met: {', '.join(wrong)}")


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
