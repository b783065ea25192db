"""Which names a recipe may give: to itself, its targets, losses and predictions."""

import re
from functools import cache
from typing import Final

_LONGEST: Final = 100
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def folder_name(name: str) -> str:
    """Returns a name that can be a folder on every system.

    Raises: ValueError with what it must be.
    """
    if not re.fullmatch(r"\w([\w.-]*\w)?", name, re.ASCII):
        raise ValueError(
            "must name a folder: letters, digits and '_.-', with a letter, digit or '_' first and "
            f"last, but is {_shown(name)}"
        )
    if _RESERVED.fullmatch(name):
        raise ValueError(f"must name a folder, but Windows keeps '{name}' for a device")
    return _not_too_long(name)


def term_name(name: str) -> str:
    """Returns a name that targets, losses and predictions may have.

    They are part of the names of logged numbers (``loss/NAME``) and of weights
    (``targets.NAME.weight``), and heads keep a layer for each prediction in a
    `torch.nn.ModuleDict`, where attributes of that class are no possible names.

    Raises: ValueError with what it must be.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(
            "the name must be of letters, digits, '_' and '-', with no '-' first, but is "
            f"{_shown(name)}"
        )
    if name in _attributes():
        raise ValueError(
            f"the name '{name}' cannot be used, as modules of torch have an attribute of this "
            f"name. Write '{name}_' or another"
        )
    return _not_too_long(name)


def _not_too_long(name: str) -> str:
    if len(name) > _LONGEST:
        raise ValueError(f"the name must have at most {_LONGEST} characters, but has {len(name)}")
    return name


def _shown(name: str) -> str:
    return f"'{name}'" if len(name) <= _LONGEST else f"one of {len(name):,} characters"


@cache
def _attributes() -> frozenset[str]:
    from torch import nn  # noqa: PLC0415 -- only where parts are loaded, which import it anyway

    return frozenset(dir(nn.ModuleDict()))
