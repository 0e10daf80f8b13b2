"""OpenAPI's description of bodies that handlers parse themselves, after admission."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The description of a JSON body, complete in itself: its definitions are put where they are used."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _resolved(schema, definitions)}}
    return {"requestBody": {"required": True, "content": content}}


def _resolved(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolved(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {name: value for name, value in node.items() if name != "$ref"}
        return {**_resolved(definitions[node["$ref"].rpartition("/")[2]], definitions), **rest}
    # A discriminator's mapping points to the definitions that are not there any more.
    kept = {name: value for name, value in node.items() if name != "discriminator"}
    return {name: _resolved(value, definitions) for name, value in kept.items()}
