"""Prints the oldest versions that the project promises to run with, as pip's constraints.

``python tests/oldest.py`` in the project's folder; ``make test-oldest`` installs what it prints.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def oldest(files: list[Path]) -> list[str]:
    """Returns ``name==version`` of every direct dependency that has a lowest version.

    Where several projects name one, they are installed together with the highest of these.
    """
    found: dict[str, Version] = {}
    for file in files:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {}).values()
        for line in (*project["dependencies"], *(line for extra in extras for line in extra)):
            need = Requirement(line)
            name = canonicalize_name(need.name)
            for each in need.specifier:
                if each.operator in (">=", "==") and not name.startswith("mimkit"):
                    found[name] = max(Version(each.version), found.get(name, Version("0")))
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(oldest([Path("pyproject.toml"), *Path("plugins").glob("*/pyproject.toml")])))
