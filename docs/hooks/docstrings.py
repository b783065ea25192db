"""Lets the API reference read mimkit's docstrings (`extensions` in ``.mkdocs.yml``).

Their sections ``Shape:``, ``Source:`` and the one-line ``Raises:`` and ``Returns:`` are prose,
which the parser of Google's style would take for lists of names. They become paragraphs;
``Args:`` and ``Attributes:`` stay what they are. Examples (``>>>``) become blocks of code.
"""

import re
from typing import Any, Final

import griffe

_PROSE: Final = re.compile(r"^(Raises|Returns|Shape|Source):(?= *\S)(.*(?:\n[ \t]+\S.*)*)", re.M)
_EXAMPLE: Final = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 +\S.*)*", re.M)


class Prose(griffe.Extension):
    """Turns the sections that are prose into paragraphs."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of one object before it is parsed."""
        if obj.docstring is not None:
            prose = _PROSE.sub(_paragraph, obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", prose)


def _paragraph(section: re.Match[str]) -> str:
    return f"\n**{section[1]}:** {' '.join(section[2].split())}"
