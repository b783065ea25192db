"""What the ledger says of time spent, and of where mimkit itself is from."""

import shutil
import subprocess

import pytest

import mimkit
from mimkit.pipeline import ledger
from mimkit.pipeline.ledger import seconds_after, seconds_before

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder, *arguments):
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *settings, "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository whose one commit holds a package."""
    root = tmp_path / "checkout"
    (root / "mimkit").mkdir(parents=True)
    (root / "mimkit" / "__init__.py").write_text("one = 1\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "mimkit")
    git(root, "commit", "-qm", "first")
    git(root, "tag", "v1")
    return root


@needs_git
def test_a_checkout_tells_its_commit_and_whether_it_was_changed(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert ledger.source_commit(checkout / "mimkit") == head
    ledger.source_commit.cache_clear()
    (checkout / "mimkit" / "__init__.py").write_text("one = 2\n")
    assert ledger.source_commit(checkout / "mimkit") == f"{head}-dirty"


@needs_git
@pytest.mark.parametrize("place", [".venv/lib/site-packages/mimkit", "mimkit2", "src/mimkit"])
def test_a_package_installed_inside_a_users_repository_has_no_commit(checkout, place):
    package = checkout / place
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    assert ledger.source_commit(package) is None


@needs_git
def test_a_package_outside_any_repository_has_no_commit(tmp_path):
    package = tmp_path / "mimkit"
    package.mkdir()
    assert ledger.source_commit(package) is None


@needs_git
def test_where_the_user_stands_does_not_matter(checkout, monkeypatch):
    ledger.source_commit.cache_clear()
    before = ledger.source_commit(ledger._SOURCE)
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    ledger.source_commit.cache_clear()
    assert ledger.source_commit(ledger._SOURCE) == before != git(checkout, "rev-parse", "HEAD")
    assert str(ledger._SOURCE / "__init__.py") == str(mimkit.__file__)


@needs_git
def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert ledger.source_commit(checkout / "mimkit") is None


def test_seconds_of_earlier_calls_are_counted_on():
    killed = {"seconds": {"prepare": 5.0, "train": 9.0, "evaluating": 2.0, "repeated": 1.0}}
    assert seconds_before(killed) == {"prepare": 5.0, "evaluating": 2.0, "repeated": 1.0}
    finished = {"seconds": {"prepare": 5.0, "train": 9.0, "evaluate": 3.0}}
    assert seconds_before(finished) == {"prepare": 5.0, "evaluating": 3.0, "repeated": 0.0}
    assert seconds_before({}) == {"prepare": 0.0, "evaluating": 0.0, "repeated": 0.0}


def test_seconds_after_a_checkpoint_are_those_of_its_later_intervals():
    rows = [
        {"step": 10, "time/step_ms": 1000.0},
        {"step": 20, "time/step_ms": 500.0},
        {"step": 20, "heldout/loss/pixels": 0.5},
        {"step": 30, "time/step_ms": 2000.0},
    ]
    # Of the interval from 10 to 20 only what lies behind step 16 was done after it.
    assert seconds_after(16, rows[1:]) == 4 * 0.5 + 10 * 2.0
    assert seconds_after(20, rows) == 20.0
    assert seconds_after(30, rows) == 0.0
