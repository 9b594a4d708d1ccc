"""Checking data from outside by pydantic models, with errors that people can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gersp_mm.utils.errors import UserError, nearest


def validated(kind: Any, content: Any, where: str) -> Any:
    """Build a model from plain data.

    Args:
        kind: A pydantic model, or a union of models.
        content: The data, as JSON or YAML gives it.
        where: The file and the place in it, with which messages start.

    Raises:
        UserError: The data do not fit. The message has one line for each field that is wrong.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        schema = adapter.json_schema()
        lines = dict.fromkeys(f"{where}: {_problem(entry, schema)}" for entry in error.errors())
        raise UserError("\n".join(lines)) from None


MAPPING = "must be a mapping (name: value)"
# Errors whose words by pydantic name its own classes and types.
WORDS = {
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}


def _problem(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return a sentence on the wrong value of a field and the values that are expected."""
    is_key = entry["loc"][-1:] == ("[key]",)
    names, known = _trace(schema, entry["loc"][:-2] if is_key else entry["loc"])
    field = ".".join(names)
    if entry["type"] == "missing":
        return f"{field} is missing"
    if entry["type"] == "extra_forbidden":
        close = nearest(str(entry["loc"][-1]), known, 0.6)
        hint = f". Did you mean {close}?" if close else f". The fields are {', '.join(known)}."
        return f"{field} is no field{hint}"
    if entry["type"].startswith("union_tag"):
        context = entry["ctx"]
        name = context["discriminator"].strip("'")
        if "tag" not in context:
            return ".".join([*names, name]) + " is missing"
        tags = context["expected_tags"].replace("'", "")
        return f"{'.'.join([*names, name])} must be one of {tags}, got {context['tag']!r}"
    if entry["type"] == "value_error":
        text = str(entry["ctx"]["error"])
        return f"{field}: {text}" if field else text
    text = WORDS.get(entry["type"]) or entry["msg"].replace("Input should be", "must be")
    text = text[0].lower() + text[1:]
    if is_key:
        return f"{field}: the key {entry['input']!r} {text}"
    return f"{field} {text}, got {entry['input']!r}".strip()


def _trace(schema: Mapping[str, Any], path: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Follow the path of an error.

    Returns:
        The names on the path as they stand in the data, without pydantic's names of union members,
        and ``task 2`` for the second entry of ``tasks``; and the fields that are known where the
        path ends.
    """
    names: list[str] = []
    known: list[str] = []
    definitions = schema.get("$defs", {})
    for part in path:
        while "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        known = list(schema.get("properties", ()))
        tags = schema.get("discriminator", {}).get("mapping", {})
        if part in tags:
            schema = {"$ref": tags[part]}
            continue
        if members := schema.get("anyOf") or schema.get("oneOf"):
            # The part is the name of a member of a union, of which one at most has fields.
            schema = next((member for member in members if "$ref" in member), {})
            continue
        entry_of_list = isinstance(part, int) and schema.get("type") == "array"
        if entry_of_list:
            names[-1:] = [f"{' '.join(names[-1:]).removesuffix('s')} {part + 1}".strip()]
        else:
            names.append(str(part))
        inner = schema.get("items") if entry_of_list else None
        inner = inner or schema.get("properties", {}).get(part)
        schema = inner or schema.get("additionalProperties") or {}
        schema = schema if isinstance(schema, Mapping) else {}
    return names, known
