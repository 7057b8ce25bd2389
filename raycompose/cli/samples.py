"""A request that an application would accept, for the line that is shown to try it."""

import inspect
import json
import shlex
from typing import Any

import pydantic
from ray.serve import Application

from raycompose.compose.pipeline import Pipeline
from raycompose.graph.signatures import SCALARS, Signature

_SAMPLES: dict[Any, Any] = {str: "hello world", int: 1, float: 1.0, bool: True, list: []}
_MEMBERS = {"string": "hello world", "integer": 1, "number": 1.0, "boolean": True, "array": []}


_FILE = object()
"""Stands for bytes, which no JSON holds."""


def curl(app: Application, url: str) -> str:
    """Return a ``curl`` line that can be pasted.

    Args:
        app: The application; what is known of its first stage decides on the body.
        url: Where it answers.
    """
    url = shlex.quote(url)  # an IPv6 address has brackets
    first = app.root.first if isinstance(app, Pipeline) else None
    body = sample(first.signature if first else None)
    flags = "-N " if isinstance(app, Pipeline) and app.root.streams else ""
    if body is None:
        return f"curl {flags}{url}"
    if body is _FILE:
        return f"curl {flags}-X POST {url} --data-binary @file"
    return f"curl {flags}-X POST {url} -d {shlex.quote(json.dumps(body))}"


def sample(signature: Signature | None) -> Any:
    """Return a JSON value that a first stage with this signature takes; ``None`` for no body.

    >>> sample(Signature(takes="request"))
    {'data': 'hello world'}
    """
    if signature is None or not signature.known or signature.takes == "request":
        return {"data": "hello world"}
    if not signature.parameters:
        return None
    if signature.takes_several:
        required = set(signature.required)
        return {p.name: _value(p.annotation) for p in signature.parameters if p.name in required}
    only = signature.parameters[0]
    if only.annotation is bytes:
        return _FILE
    value = _value(only.annotation)
    return {only.name: value} if only.annotation in SCALARS else value


def _value(annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return "hello world"
    if annotation in _SAMPLES:
        return _SAMPLES[annotation]
    try:
        schema = pydantic.TypeAdapter(annotation).json_schema()
    except pydantic.PydanticUserError:
        return "hello world"
    return _from_schema(schema, schema.get("$defs", {}))


def _from_schema(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _from_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("anyOf"):
        return _from_schema(schema["anyOf"][0], definitions)
    if schema.get("type") == "object":
        members = schema.get("properties", {})
        return {k: _from_schema(members[k], definitions) for k in schema.get("required", ())}
    if schema.get("type") == "array" and "prefixItems" in schema:
        return [_from_schema(item, definitions) for item in schema["prefixItems"]]
    if schema.get("type") == "array" and "items" in schema:
        return [_from_schema(schema["items"], definitions)]
    return _MEMBERS.get(schema.get("type", ""), "hello world")
