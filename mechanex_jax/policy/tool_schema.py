"""The one JSON Schema that a policy's constraints amount to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechanex_jax.errors import Verbatim, expected

if TYPE_CHECKING:
    from mechanex_jax.policy.controls import ConstraintControls

_CALL = ("tool_name", "arguments")
_PARAMETERS = ("parameters", "input_schema", "inputSchema")  # as OpenAI, Anthropic and MCP call them
_DATA = ("const", "enum", "default", "examples")  # keywords whose values are not schemas


def as_schema(name: str, value: Any) -> dict[str, Any]:
    """A JSON Schema as a dict, from any form that `json_schema` of `generate` takes.

    Raises:
      ArgumentError: it is none, or a text that is not JSON.
    """
    if hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise expected(name, value, "a JSON Schema; this text is not JSON") from None
    if isinstance(value, bool):
        return {} if value else {"not": {}}
    if not isinstance(value, Mapping):
        raise expected(name, value, "a JSON Schema: a dict, or True, or a JSON text")
    return dict(value)


def tools(tool_schema: Mapping[str, Any], name: str = "tool_schema") -> dict[str, dict[str, Any]]:
    """Tool name -> the schema of its arguments.

    Args:
      tool_schema: one tool, {"name": ..., "parameters": {...}}; or {"tools": [tools]}, each of them so or wrapped as
        {"type": "function", "function": tool}; or {tool name: parameters}.
      name: what an error calls it.

    Raises:
      ArgumentError: none of these forms, no tools, or two of one name.
    """
    listed = tool_schema.get("tools")
    if isinstance(listed, (list, tuple)):
        pairs = [_tool(f"{name}.tools[{index}]", tool) for index, tool in enumerate(listed)]
    elif isinstance(tool_schema.get("name"), str) or tool_schema.get("type") == "function":
        pairs = [_tool(name, tool_schema)]
    else:
        pairs = [(str(key), _parameters(f"{name}.{key}", value)) for key, value in tool_schema.items()]
    if not pairs or not all(key for key, _ in pairs):
        raise expected(name, tool_schema, "one tool or more, each with a name")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise expected(name, [key for key, _ in pairs], "tools of different names")
    return found


def _tool(name: str, tool: Any) -> tuple[str, dict[str, Any]]:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise expected(name, tool, 'a tool such as {"name": "search", "parameters": {"type": "object", ...}}')
    given = [inner[key] for key in _PARAMETERS if inner.get(key) is not None]
    return inner["name"], _parameters(f"{name}.parameters", given[0] if given else {"type": "object"})


def _parameters(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise expected(name, value, "the JSON Schema of the tool's arguments")
    return dict(value)


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to its own root mean `place` of another one."""
    if isinstance(schema, Mapping):
        moved = {key: value if key in _DATA else _moved(value, place) for key, value in schema.items()}
        reference = schema.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            moved["$ref"] = place + reference[1:]
        return moved
    return [_moved(part, place) for part in schema] if isinstance(schema, (list, tuple)) else schema


def _calls(found: Mapping[str, Any]) -> dict[str, Any]:
    """A call of one of the tools."""
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "tool_name": {"const": name},
                    "arguments": _moved(arguments, f"#/anyOf/{i}/properties/arguments"),
                },
                "required": list(_CALL),
                "additionalProperties": False,
            }
            for i, (name, arguments) in enumerate(found.items())
        ]
    }


def _objects(schema: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """What is an object of `schema` with these fields. References stay what they are: the root stays the root."""
    if schema.get("type") == "object" and "$ref" not in schema:
        union = list(dict.fromkeys([*schema.get("required", ()), *required]))
        return {**schema, "required": union} if union else dict(schema)
    wanted = {"type": "object", **({"required": list(required)} if required else {})}
    rest = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
    parts = [*schema.get("allOf", ()), *([{"$ref": schema["$ref"]}] if "$ref" in schema else ())]
    return {**rest, "allOf": [*parts, wanted]} if rest or parts else wanted


def effective_schema(constraints: ConstraintControls) -> dict[str, Any] | None:
    """What the text must be as JSON, all of a policy's fields taken together; None if it need not be JSON.

    Args:
      constraints: of a policy. `json_mode` asks for an object, `required_fields` for an object with these fields (they join the
        root of `json_schema`, so a schema that refers to its own root asks for them there too), `tool_schema` for
        {"tool_name": ..., "arguments": ...} of one of its tools.

    Raises:
      ArgumentError: `tool_schema` with `json_schema`, or with required fields that no call has.
    """
    required = constraints.required_fields
    if constraints.tool_schema is not None:
        if constraints.json_schema is not None:
            raise expected("constraints.tool_schema", Verbatim("json_schema with it"), "one of the two", "Put them into one.")
        if extra := [field for field in required if field not in _CALL]:
            raise expected("constraints.required_fields", extra, "tool_name and arguments at most, where tool_schema is given")
        return _calls(tools(constraints.tool_schema, "constraints.tool_schema"))
    if constraints.json_mode or required:
        return _objects({"type": "object"} if constraints.json_schema is None else constraints.json_schema, required)
    return constraints.json_schema
