"""The program that all commands belong to: every error becomes one message and an exit code."""

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mimkit.console import make_console
from mimkit.errors import mendable
from mimkit.train.signals import Interrupted


def make_program() -> typer.Typer:
    """Makes the program, without commands."""
    program = typer.Typer(
        cls=_Program,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_options)
    return program


class _Program(TyperGroup):
    """Turns every error into one message and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            with mendable():
                return super().invoke(ctx)
        except Interrupted as error:  # in what has no more to say of how to go on
            make_console(stderr=True).print(f"{error}. To go on, repeat the same command.")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:  # between or in evaluations, whose finished cells are kept
            make_console(stderr=True).print("Interrupted. To go on, repeat the same command.")
            raise typer.Exit(128 + signal.SIGINT) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click"):
                raise
            from mimkit.failure import tell

            raise typer.Exit(tell(error, debug=ctx.params["debug"])) from error


def _version(asked: bool) -> None:
    if asked:
        from mimkit.recipe.describe import listing

        listing.show_versions(make_console())
        raise typer.Exit


def _options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Of mimkit, torch and plugins."
        ),
    ] = False,
) -> None:
    """Masked image modeling from exchangeable parts, compared honestly."""
