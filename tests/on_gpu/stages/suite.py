"""The tests that need a GPU; in a rehearsal the other tests of the same files."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from on_gpu.recipes import ROOT
from on_gpu.work import Work


def run(work: Work) -> None:
    """Tells how many tests passed, and the names of those that failed."""
    told = work.scratch / "tests.xml"
    pytest = ["-m", "pytest", "-p", "pytest_timeout", f"--junitxml={told}"]
    # Only the plugins that the settings need: what else a machine has installed may warn.
    done = subprocess.run(
        [sys.executable, *pytest, "-m", work.sizes.tests, *map(str, files())],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )
    cases = list(ElementTree.parse(told).iter("testcase"))
    bad = [case for case in cases if {child.tag for child in case} & {"failure", "error"}]
    skipped = [case for case in cases if case.find("skipped") is not None]
    work.tell("passed", len(cases) - len(bad) - len(skipped))
    work.tell("skipped", len(skipped))
    work.tell("failed", len(bad))
    for case in bad:
        work.tell("failed", f"{case.get('classname')}.{case.get('name')}")
    sys.exit(done.returncode)


def files() -> list[Path]:
    """Returns the files that hold tests for a GPU: others may need what only developers have."""
    found = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]
    return [file for file in sorted(found) if "pytest.mark.gpu" in file.read_text("utf-8")]
