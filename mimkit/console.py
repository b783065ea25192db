"""Where text for people goes: consoles that print what they are given.

File names, class names and what plugins say come from outside, so square brackets are no markup
here, and what a terminal's code page lacks becomes a question mark instead of an error. A file or
a pipe has no width, so there a line is as long as what it says.
"""

from typing import IO, Any, Final, cast

from rich.console import Console, ConsoleDimensions
from rich.text import Text

__all__ = ["headed", "make_console"]

_NO_WIDTH: Final = 10_000
"""Columns of what is no terminal: more than a line has."""


class _AnyText:
    """A stream that takes every text, whatever its encoding."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, "replace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Console(Console):
    @property
    def file(self) -> IO[str]:
        """The stream that is standard output, or error, when something is printed."""
        return cast(IO[str], _AnyText(super().file))

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    @property
    def size(self) -> ConsoleDimensions:
        """Of the terminal; of a file or a pipe no width, unless COLUMNS gives one."""
        found = super().size
        if self.is_terminal or self._width is not None:
            return found
        return ConsoleDimensions(_NO_WIDTH, found.height)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self._width, self._height = new


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Makes a console for which everything is plain text; styles are given beside it.

    >>> make_console().print("a[/b]")
    a[/b]
    """
    return _Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def headed(word: str, text: object, style: str = "bold") -> Text:
    """Writes a line whose first word stands out.

    >>> print(headed("wrote", "x[1].txt"))
    wrote x[1].txt
    """
    return Text.assemble((word, style), f" {text}")
