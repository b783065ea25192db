"""The options of a part: its constructor's signature is their schema."""

import inspect
import types
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from mimkit.errors import PluginError
from mimkit.recipe.registry import Entry

RULE = "__init__(self, geometry, *, option: type = default, ...)"
RESERVED = {
    "losses": frozenset({"part", "prediction", "target", "weight"}),
}
"""Keys of a recipe's part tables that are not options of the part; by default ``part`` alone."""

_WORDS = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "booleans"),
    str: ("a string", "strings"),
}
_LIMITS = (
    (Gt, "gt", "above"),
    (Ge, "ge", "at least"),
    (Lt, "lt", "below"),
    (Le, "le", "at most"),
)
"""Bounds with their attributes and words."""

NONE: Final = "none"
"""What a recipe writes for None: an option that may be left out has no value then."""


@dataclass(frozen=True)
class Option:
    """One option as its constructor declares it.

    Args:
        name: the recipe's key.
        annotation: its type.
        default: its default; ``...`` if it must be given.
    """

    name: str
    annotation: Any
    default: Any


def reserved(kind: str) -> frozenset[str]:
    """Returns the keys of a part's table that do not belong to the part itself."""
    return RESERVED.get(kind, frozenset({"part"}))


@cache
def schema(entry: Entry, cls: type) -> type[BaseModel]:
    """Builds the model that validates the options of a part.

    Raises: PluginError if the constructor breaks the rule, naming distribution and parameter.
    """
    found = options(entry, cls)
    fields: dict[str, Any] = {o.name: (o.annotation, o.default) for o in found}
    config = ConfigDict(
        strict=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
    with warnings.catch_warnings():
        # An option may be called like a method of pydantic's models: "copy" is harmless here.
        warnings.simplefilter("ignore", UserWarning)
        model = create_model(cls.__name__, __config__=config, **fields)
    try:
        model.model_validate({})
    except ValidationError as error:
        for problem in error.errors():
            if problem["type"] != "missing":
                option = model.model_fields[str(problem["loc"][0])]
                raise _broken(
                    entry,
                    f"the default of '{problem['loc'][0]}' must be "
                    f"{describe(annotation_of(option))}, but is {option.default!r}",
                ) from error
    return model


def options(entry: Entry, cls: type) -> list[Option]:
    """Reads the options of a part from its constructor.

    Raises: PluginError if the constructor breaks the rule, naming distribution and parameter.
    """
    try:
        parameters = inspect.signature(cls, eval_str=True).parameters.values()
    except NameError as error:
        raise _broken(entry, f"an annotation is unknown at run time: {error}") from error
    before = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    for parameter in before:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise _broken(entry, f"'{parameter}' hides its options")
    if len(before) != 1 or before[0].default is not before[0].empty:
        names = ", ".join(f"'{p.name}'" for p in before) or "nothing"
        raise _broken(entry, f"what stands before '*' is {names}")
    return [_option(entry, p) for p in parameters if p.kind is p.KEYWORD_ONLY]


def _option(entry: Entry, parameter: inspect.Parameter) -> Option:
    name, annotation, default = parameter.name, parameter.annotation, parameter.default
    if name in reserved(entry.kind) or name.startswith("_"):
        raise _broken(entry, f"'{name}' cannot be an option, because recipes reserve this key")
    if annotation is parameter.empty:
        raise _broken(entry, f"'{name}' has no type")
    try:
        describe(annotation)
    except TypeError as error:
        raise _broken(entry, f"the type of '{name}' is not plain data: {error}") from error
    if isinstance(default, list | dict | set):
        raise _broken(entry, f"the default of '{name}' is mutable; use a tuple")
    if _optional(annotation) and NONE in _choices(annotation):
        raise _broken(
            entry, f"'{name}' has both None and the choice '{NONE}', which recipes confuse"
        )
    return Option(name, annotation, ... if default is parameter.empty else default)


def with_none(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Returns the values of a table with None where it says "none" of what may be left out."""

    def meant(name: str, value: Any) -> Any:
        field = model.model_fields.get(name)
        if value != NONE or field is None or NONE in _choices(field.annotation):
            return value
        return None if _optional(field.annotation) else value

    return {name: meant(name, value) for name, value in values.items()}


def annotation_of(field: FieldInfo) -> Any:
    """Returns the type of a model's field with its bounds, as `describe` takes it."""
    annotation: Any = field.annotation
    return Annotated[annotation, *field.metadata] if field.metadata else annotation


def describe(annotation: Any, *, plural: bool = False) -> str:
    """Says in words what a value must be.

    >>> describe(tuple[float, float] | None)
    'an array of 2 numbers'
    >>> describe(Annotated[int, Ge(1), Le(1000)])
    'an integer from 1 to 1,000'

    Raises: TypeError if the annotation is not plain data that a recipe can hold.
    """
    if annotation in _WORDS:
        return _WORDS[annotation][plural]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], plural=plural) + _bounds(arguments[1:])
    if origin is Literal:
        return " or ".join(f"'{choice}'" for choice in arguments)
    if origin in (Union, types.UnionType):
        given = [argument for argument in arguments if argument is not types.NoneType]
        return " or ".join(describe(argument, plural=plural) for argument in given)
    if origin in (tuple, list):
        noun = "arrays" if plural else "an array"
        items = [argument for argument in arguments if argument is not Ellipsis]
        if len(set(items)) > 1:
            return f"{noun} of {', '.join(describe(item) for item in items)}"
        variable = origin is list or Ellipsis in arguments
        count = "" if variable else f"{len(items)} "
        return f"{noun} of {count}{describe(items[0], plural=True)}"
    raise TypeError(f"{annotation!r} is none of int, float, bool, str, Literal, tuple, list")


def _bounds(metadata: Iterable[Any]) -> str:
    """Writes bounds behind what they bound: " from 0 to 1", " above 0 and below 1"."""
    found: dict[type, Any] = {}
    for item in metadata:
        inner = item.metadata if isinstance(item, FieldInfo) else [item]
        for bound in inner:
            each = bound if isinstance(bound, GroupedMetadata) else [bound]
            found |= {type(limit): limit for limit in each}
    if Ge in found and Le in found:
        return f" from {_number(found[Ge].ge)} to {_number(found[Le].le)}"
    words = [
        f"{word} {_number(getattr(found[kind], attribute))}"
        for kind, attribute, word in _LIMITS
        if kind in found
    ]
    of = " of" if words and words[0].startswith("at") else ""
    return f"{of} {' and '.join(words)}" if words else ""


def _number(bound: float) -> str:
    """Writes a bound; a large power of two as what it is."""
    if isinstance(bound, int):
        return "2^63" if bound == 2**63 else f"{bound:,}"
    return f"{bound:g}"


def _optional(annotation: Any) -> bool:
    return types.NoneType in get_args(annotation)


def _choices(annotation: Any) -> set[Any]:
    """All choices of a Literal, also where it is one of several types."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return set(arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_choices(inner) for inner in arguments))
    return set()


def _broken(entry: Entry, reason: str) -> PluginError:
    return PluginError(
        f"{entry}: its constructor must be {RULE}, but {reason}. "
        f"Tell the authors of {entry.distribution}."
    )
