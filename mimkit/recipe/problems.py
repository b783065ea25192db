"""All that is wrong with a recipe, collected and put into words."""

import inspect
import json
import re
from typing import Annotated, Any, Final, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mimkit.errors import RecipeError, nearest
from mimkit.recipe.document import Document, Key, Place
from mimkit.recipe.options import NONE, annotation_of, describe

_SHOWN: Final = 120
"""So many characters of a value are shown in a message."""

_TABLE_DEPTHS = dict.fromkeys(("data", "augment", "masker", "encoder", "head", "train"), 1) | (
    dict.fromkeys(("targets", "losses", "evaluate", "presets"), 2)
)
"""How many names of a key belong to its table."""


class Problems:
    """Collects problems; the same one found twice is told once."""

    def __init__(self) -> None:
        self._found: dict[tuple[Place, str], None] = {}
        self._cause: Exception | None = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, document: Document, key: Key, text: str, cause: Exception | None = None) -> None:
        """Notes one problem.

        Args:
            document: what is wrong.
            key: of the table or value in it that is wrong.
            text: what must hold, but what is; nearest name; next command.
            cause: whose traceback ``--debug`` should show.
        """
        place = document.place(key)
        self._found[place, f"{place}, {label(key)}: {' '.join(text.split())}"] = None
        self._cause = self._cause or cause

    def add_invalid(
        self,
        document: Document,
        table: Key,
        model: type[BaseModel],
        error: ValidationError,
        *,
        owner: str = "",
        see: str = "",
    ) -> None:
        """Notes everything that a model found wrong with a table of a document.

        Args:
            document: what was validated.
            table: the key of the validated table in it; () for all of it.
            model: what validated it.
            error: what it found.
            owner: whose keys these are; default: the table's.
            see: the command that tells more, if there is one.
        """
        for problem in error.errors(include_url=False):
            # What is wrong with a table's name is told of the table.
            location = problem["loc"][:-1] if problem["loc"][-1:] == ("[key]",) else problem["loc"]
            key, holder, annotation = _field(model, location)
            fields, full_key = holder.model_fields, (*table, *key)
            if problem["type"] == "extra_forbidden":
                of = owner or label(key[:-1]) or "a recipe"
                guess = nearest(str(key[-1]), fields) or f" Known are: {', '.join(fields)}."
                text = f"unknown key of {of}.{guess} {see}"
            elif problem["type"] == "missing" and key == problem["loc"]:
                about = fields[str(key[-1])].description
                meaning = f" ({about})" if about else ""
                text = f"is missing; it must be {_expected(annotation)}{meaning}. {see}"
            elif problem["type"] == "value_error":
                text = f"{problem['ctx']['error']}. {see}"
            else:
                value = document.at(full_key)
                guess = _nearest_choice(value, annotation)
                finite = ", neither nan nor inf" if problem["type"] == "finite_number" else ""
                text = (
                    f"must be {_expected(annotation)}{finite}, but is {shown(value)}.{guess} {see}"
                )
            self.add(document, full_key, text)

    def raise_if_any(self) -> None:
        """Raises: RecipeError with all problems, one a line, in the order of the file."""
        if self._found:
            found = sorted(self._found, key=lambda item: (item[0].source, item[0].line))
            raise RecipeError("\n".join(text for _, text in found)) from self._cause


def label(key: Key) -> str:
    """Writes a key as people find it in the file.

    >>> label(("targets", "patches", "sees"))
    '[targets.patches] sees'
    """
    depth = _TABLE_DEPTHS.get(str(key[0]), 0) if key else 0
    names = [written(name) if re.search(r"[^\w-]|^$", str(name)) else str(name) for name in key]
    table, rest = ".".join(names[:depth]), ".".join(names[depth:])
    return " ".join(part for part in (f"[{table}]" if table else "", rest) if part)


def _field(model: type[BaseModel], location: Key) -> tuple[Key, type[BaseModel], Any]:
    """Follows an error's location to the innermost field that stands in a recipe.

    Returns: its key, the model that holds it, and its type (None if it is unknown).
    """
    key: Key = ()
    holder, annotation = model, cast(Any, model)
    for step in location:
        if _is_model(annotation):
            holder, field = annotation, annotation.model_fields.get(str(step))
            annotation = annotation_of(field) if field else None
        elif _is_table(_bare(annotation)):
            annotation = get_args(_bare(annotation))[-1]
        else:
            break
        key = (*key, step)
    return key, holder, annotation


def _bare(annotation: Any) -> Any:
    """A type without its bounds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_table(annotation: Any) -> bool:
    """Whether this is a table or array of tables that have a schema of their own."""
    return get_origin(annotation) in (dict, list) and _is_model(get_args(annotation)[-1])


def _is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def _expected(annotation: Any) -> str:
    bare = _bare(annotation)
    if _is_model(bare) or get_origin(bare) is dict:
        return "a table"
    return "an array of tables" if _is_table(bare) else describe(annotation)


def _nearest_choice(value: object, annotation: Any) -> str:
    choices = [choice for choice in get_args(_bare(annotation)) if isinstance(choice, str)]
    return nearest(value, choices) if isinstance(value, str) else ""


def written(value: object) -> str:
    """Writes a value about as it stands in a recipe.

    >>> written({"lr": [0.1, float("nan")], "flip": True})
    '{ lr = [0.1, nan], flip = true }'
    """
    match value:
        case str() | bool():
            return json.dumps(value, ensure_ascii=False)
        case dict():
            inner = ", ".join(f"{name} = {written(item)}" for name, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(map(written, value))}]"
        case None:
            return f'"{NONE}"'
    return str(value)


def shown(value: object) -> str:
    """Writes a value for a message, where a very long one is cut."""
    return cut(written(value))


def cut(text: str) -> str:
    """Returns the beginning of a very long text."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
