"""Systems that lack a module of the standard library: nothing may need it to start."""

import subprocess
import sys
import textwrap

BLOCK = """
    import builtins, sys
    real = builtins.__import__

    def guarded(name, globals=None, *rest, **named):
        # Libraries may know their own ways; ours is what must not need these.
        ours = (globals or {}).get("__name__", "").startswith("mimkit")
        if ours and name in ("fcntl", "resource"):
            raise ImportError(f"No module named {name!r}")
        return real(name, globals, *rest, **named)

    builtins.__import__ = guarded
"""


def python(program):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCK) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_can_be_imported_without_the_modules_that_windows_lacks():
    done = python("""
        import mimkit.api, mimkit.bench, mimkit.cli, mimkit.conformance.table
        import mimkit.pipeline.exporting, mimkit.pipeline.importing, mimkit.plugin.new
    """)
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts_without_them():
    done = python("""
        sys.argv = ["mimkit", "list"]
        from mimkit import cli
        cli.main()
    """)
    assert done.returncode == 0, done.stderr
