"""``mimkit list --schema``: what a recipe may say, for editors that complete and check TOML."""

from typing import Any

from mimkit.errors import PluginError
from mimkit.recipe.options import NONE, reserved, schema
from mimkit.recipe.read.validate import KIND_OF, tables_schema
from mimkit.recipe.registry import entries, load

JsonSchema = dict[str, Any]


def json_schema() -> JsonSchema:
    """Returns a JSON schema of recipes with the parts of all installed distributions.

    It knows keys and types, not what must be there: a recipe may be laid over another, so whether
    it is whole is for ``mimkit check`` to say. Parts that do not load are left out.
    """
    tree = tables_schema()
    for section in tree["$defs"].values():
        section.pop("required", None)
    tree.pop("required", None)
    properties = tree["properties"]
    for table, kind in KIND_OF.items():
        part = {"$ref": f"#/$defs/{kind}"}
        tree["$defs"][kind] = _parts(kind)
        if table == "evaluate":
            properties[table] = {"type": "array", "items": part}
        elif table in ("targets", "losses"):
            properties[table] = {"type": "object", "additionalProperties": part}
        else:
            properties[table] = part
    properties["base"] = {
        "type": "string",
        "description": "a recipe's name or file, which this one is laid over",
    }
    overlay = {name: value for name, value in properties.items() if name != "base"}
    item = {"type": "object", "patternProperties": {"^[0-9]+$": {"$ref": "#/$defs/evaluators"}}}
    properties["evaluate"] = overlay["evaluate"] = {"anyOf": [properties["evaluate"], item]}
    properties["presets"] = {
        "type": "object",
        "description": "[presets.NAME]: tables to lay over this recipe (--preset NAME)",
        "additionalProperties": {"type": "object", "properties": overlay},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mimkit recipe",
        **_writable(tree),
    }


def _writable(schema: Any) -> Any:
    """Puts what a recipe writes for None where a schema has null, which TOML has not."""
    if isinstance(schema, list):
        return [_writable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema == {"type": "null"}:
        return {"const": NONE}
    return {k: _writable(v) for k, v in schema.items() if not (k == "default" and v is None)}


def _parts(kind: str) -> JsonSchema:
    """Allows any part of a kind with its options, the change of options alone, and none."""
    known: list[JsonSchema] = []
    shared = reserved(kind) - {"part"}
    extra = {name: {"type": "number" if name == "weight" else "string"} for name in shared}
    found = entries(kind)
    names = [entry.name for entry in found]
    for entry in found:
        try:
            options = schema(entry, load(entry)).model_json_schema()
        except PluginError:
            continue
        full = f"{entry.distribution}:{entry.name}"
        spelled = [full] if names.count(entry.name) > 1 else [entry.name, full]
        known.append(
            {
                "title": f"{entry.name} ({entry.distribution})",
                "type": "object",
                "properties": {
                    "part": {"enum": spelled},
                    **extra,
                    **options.get("properties", {}),
                },
                "required": ["part"],
                "additionalProperties": False,
            }
        )
    none = {"type": "object", "properties": {"part": {"const": "none"}}, "required": ["part"]}
    changes = {"type": "object", "not": {"required": ["part"]}}
    return {"anyOf": [*known, none, changes]}
