"""What the TOML of a recipe may say: from a document to a `Recipe`, or to all of its problems."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mimkit.errors import PluginError, nearest
from mimkit.recipe import registry
from mimkit.recipe.document import Document, Key
from mimkit.recipe.options import reserved, schema, with_none
from mimkit.recipe.problems import Problems, label
from mimkit.recipe.read.names import folder_name, term_name
from mimkit.recipe.read.resolve import changes
from mimkit.recipe.sections import SECTIONS, AugmentSection, DataSection, Strict, TrainSection
from mimkit.recipe.tables import PartTable, Recipe, TermTable

KIND_OF = {
    "masker": "maskers",
    "encoder": "encoders",
    "targets": "targets",
    "head": "heads",
    "losses": "losses",
    "evaluate": "evaluators",
}
"""Table of a recipe to the kind of part that it names."""


Name = Annotated[str, AfterValidator(term_name)]


class _Part(BaseModel):
    """A part's table; its other keys are options, which the part's own schema checks."""

    model_config = ConfigDict(strict=True, extra="allow")

    part: str = Field(description="the registered name of a part; see: mimkit list")


class _Loss(_Part):
    prediction: Name | None = None
    target: str | None = None
    weight: float = Field(1.0, allow_inf_nan=False)


class _Tables(Strict):
    """The top level of a recipe."""

    name: Annotated[str, AfterValidator(folder_name)] = Field(
        description="the name of the recipe and of its run's folder"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataSection = Field(description="name, image_size and patch_size of the images")
    augment: AugmentSection = AugmentSection()
    masker: _Part = Field(description="what is hidden; see: mimkit list maskers")
    encoder: _Part = Field(description="what is trained; see: mimkit list encoders")
    targets: dict[Name, _Part] = Field(
        min_length=1, description="[targets.NAME]: what is predicted; see: mimkit list targets"
    )
    head: _Part = Field(description="what predicts; see: mimkit list heads")
    losses: dict[Name, _Loss] = Field(
        min_length=1, description="[losses.NAME]: what is minimised; see: mimkit list losses"
    )
    train: TrainSection = Field(description="budget, optimizer and schedule")
    evaluate: list[_Part] = Field([])
    origin: dict[str, Any] = Field({})


def tables_schema() -> dict[str, Any]:
    """Returns a JSON schema of the top level of a recipe; parts are any table that names one."""
    return _Tables.model_json_schema()


def validate(document: Document, file: Path, problems: Problems) -> Recipe | None:
    """Makes a recipe of a document, or notes all of its problems and returns None."""
    for key in _unwritable(document.tree):
        problems.add(
            document,
            key,
            "must be text that a file can hold, but has a NUL or half a character in it.",
        )
    if problems:
        return None
    parts = {key: _part_table(document, key, problems) for key in _part_keys(document.tree)}
    _compare_targets(document, problems)
    try:
        tables = _Tables.model_validate_json(_as_json(_with_none(document.tree)))
    except ValidationError as error:
        problems.add_invalid(document, (), _Tables, error)
    found = {key: part for key, part in parts.items() if part is not None}
    if problems:
        return None
    told = (*parts, *document.settings())
    places = {key: f"{document.place(key)}, {label(key)}" for key in told}
    recipe = Recipe(
        name=tables.name,
        seed=tables.seed,
        data=tables.data,
        augment=tables.augment,
        masker=found["masker",],
        encoder=found["encoder",],
        targets={name: found["targets", name] for name in tables.targets},
        head=found["head",],
        losses={
            name: TermTable(
                name=name,
                prediction=table.prediction or name,
                target=table.target or name,
                weight=table.weight,
                loss=found["losses", name],
            )
            for name, table in tables.losses.items()
        },
        train=tables.train,
        evaluate=[found["evaluate", number] for number in range(len(tables.evaluate))],
        source=file,
        places={".".join(map(str, key)): place for key, place in places.items()},
    )
    return recipe.model_copy(update={"notes": changes(tables.origin, recipe)})


def _as_json(values: Mapping[str, Any]) -> str:
    """Writes TOML values as JSON; a date, which is no value of any key, as what none takes."""
    return json.dumps(values, default=lambda _: math.nan)


def _with_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a document's tree with None where its own tables say "none"."""

    def told(name: str, table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        if name == "losses":
            return {k: with_none(v, _Loss) if isinstance(v, dict) else v for k, v in table.items()}
        return with_none(table, SECTIONS[name]) if name in SECTIONS else table

    return {name: told(name, table) for name, table in tree.items()}


def _unwritable(value: Any, at: Key = ()) -> Iterator[Key]:
    """Yields the keys of strings that no file and no file name could hold."""
    match value:
        case str() if any(
            character == "\0" or "\ud800" <= character <= "\udfff" for character in value
        ):
            yield at
        case dict():
            for name, item in value.items():
                yield from _unwritable(name, (*at, name))
                yield from _unwritable(item, (*at, name))
        case list():
            for number, item in enumerate(value):
                yield from _unwritable(item, (*at, number))


def _part_keys(tree: Mapping[str, Any]) -> Iterator[Key]:
    """Yields the keys of the tables that name a part; malformed ones are left to `_Tables`."""
    tables: dict[Key, object]
    for name in KIND_OF:
        table = tree.get(name)
        if name == "evaluate" and isinstance(table, list):
            tables = {(name, number): value for number, value in enumerate(table)}
        elif name in ("targets", "losses") and isinstance(table, dict):
            tables = {(name, key): value for key, value in table.items()}
        else:
            tables = {(name,): table}
        for key, value in tables.items():
            if isinstance(value, dict) and isinstance(value.get("part"), str):
                yield key


def _part_table(document: Document, key: Key, problems: Problems) -> PartTable | None:
    kind, table = KIND_OF[str(key[0])], document.at(key)
    name = table["part"]
    options = {k: v for k, v in table.items() if k not in reserved(kind)}
    try:
        entry = registry.find(kind, name)
        cls = cast(type, registry.load(entry))
        model = schema(entry, cls)
    except PluginError as error:
        problems.add(document, (*key, "part"), f"{error}{_made_with(document, key)}", error)
        return None
    try:
        valid = model.model_validate_json(_as_json(with_none(options, model)))
    except ValidationError as error:
        see = f"See: mimkit list {kind} {name}"
        problems.add_invalid(document, key, model, error, owner=str(entry), see=see)
        return None
    return PartTable(
        kind=kind,
        name=name,
        cls=cls,
        options=valid.model_dump(),
        distribution=entry.distribution,
        version=entry.version,
    )


def _made_with(document: Document, key: Key) -> str:
    """Says which distribution offered a part when a run folder's recipe was written."""
    origin = document.tree.get("origin")
    parts = origin.get("parts") if isinstance(origin, dict) else None
    made = parts.get(".".join(map(str, key))) if isinstance(parts, dict) else None
    if not isinstance(made, str):
        return ""
    name, _, version = made.partition(" ")
    return f" The run was made with {made}: pip install {name}=={version}"


def _compare_targets(document: Document, problems: Problems) -> None:
    """Notes losses without a target of that name, and targets without a loss."""
    targets, losses = document.tree.get("targets"), document.tree.get("losses")
    if not (isinstance(targets, dict) and isinstance(losses, dict)):
        return
    used = {
        name: with_none(loss, _Loss).get("target") or name
        for name, loss in losses.items()
        if isinstance(loss, dict)
    }
    unknown = {name: target for name, target in used.items() if target not in list(targets)}
    for name, target in unknown.items():
        known = ", ".join(f"'{known}'" for known in targets)
        text = f"must be one of the recipe's targets ({known}), but is '{target}'."
        problems.add(document, ("losses", name, "target"), text + nearest(str(target), targets))
    # A misspelt target would be reported once more as one that nobody uses.
    for target in targets if not unknown else ():
        if target not in used.values():
            text = "no loss compares this target with a prediction. Remove it, or add a table"
            problems.add(document, ("targets", target), f"{text} [losses.{target}].")
