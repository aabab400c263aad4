"""JSON Schemas as users give them: in any form that `generate` takes, and as the arguments of tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from mechanex_jax.constraints import sources
from mechanex_jax.errors import expected

JsonSchema: TypeAlias = dict[str, Any]

_PARAMETERS = ("parameters", "input_schema", "inputSchema")  # as OpenAI, Anthropic and MCP call them


def as_schema(name: str, value: object) -> JsonSchema:
    """Bring a JSON Schema, in any form that `json_schema` of `generate` takes, into that of a dict.

    Raises:
      ArgumentError: it is none, or a text that is not JSON.
    """
    schema = sources.read_schema(value, name).schema
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    return dict(schema)


def tools(tool_schema: Mapping[str, object], name: str = "tool_schema") -> dict[str, JsonSchema]:
    """Read the tools of a `tool_schema`: name of each -> the schema of its arguments.

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
    by_name = dict(pairs)
    if len(by_name) < len(pairs):
        raise expected(name, [key for key, _ in pairs], "tools of different names")
    return by_name


def _tool(name: str, tool: object) -> tuple[str, JsonSchema]:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise expected(name, tool, 'a tool such as {"name": "search", "parameters": {"type": "object", ...}}')
    parameters = next((inner[key] for key in _PARAMETERS if inner.get(key) is not None), {"type": "object"})
    return inner["name"], _parameters(f"{name}.parameters", parameters)


def _parameters(name: str, value: object) -> JsonSchema:
    if not isinstance(value, Mapping):
        raise expected(name, value, "the JSON Schema of the tool's arguments")
    return dict(value)
