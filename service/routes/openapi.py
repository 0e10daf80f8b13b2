"""OpenAPI's description of what handlers parse themselves, after admission, and of every error that they answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from service.errors import error_classes
from service.schemas import MistralProblem, Problem

PROBLEM_TYPE = "application/problem+json"
_ALWAYS = (400, 500)
"""Statuses that every route may answer: a Host header that is none, and a fault of ours."""
_NEEDS_KEY = (401, 403, 429, 503)
"""Statuses of every route that asks for a key, where keys are set, and for a model that is ready."""
_READS = (408, 409, 413, 415, 422, 504)
"""Statuses of every route that reads a file."""


def problems(
    *statuses: int, needs_key: bool = True, reads: bool = False, shape: type[BaseModel] = Problem
) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, each status with the codes that may come with it.

    Args:
        *statuses: Besides those that every route has.
        needs_key: Whether the route asks for a key.
        reads: Whether the route reads a file.
        shape: The shape of its errors.

    Returns:
        What FastAPI takes as `responses`.
    """
    media_type = PROBLEM_TYPE if shape is Problem else "application/json"
    every = sorted({*_ALWAYS, *statuses, *(_READS if reads else ()), *(_NEEDS_KEY if needs_key else ())})
    return {
        status: {"description": HTTPStatus(status).phrase, "content": _content(status, shape, media_type)}
        for status in every
    }


def _content(status: int, shape: type[BaseModel], media_type: str) -> dict[str, Any]:
    schema = shape.model_json_schema()
    schema = _resolved(schema, schema.pop("$defs", {}))
    members = schema["properties"]["error"]["properties"] if "error" in schema["properties"] else schema["properties"]
    codes = {code: error.title for code, error in error_classes().items() if error.status == status}
    members["code"] = {"type": "string", "enum": list(codes), "description": "docs/errors.md says what each means."}
    if shape is Problem:
        members["status"] = {"type": "integer", "const": status}
    if shape is MistralProblem and status == 422:
        schema["required"].append("detail")
    return {media_type: {"schema": schema}}


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
