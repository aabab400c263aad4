"""Constraints as users have them (classes, patterns, tools, files) in the plain forms that front ends read.

Nothing here imports jsonschema or pydantic: an argument is looked at before anything else is.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from mechanex_jax.errors import ConstraintError, expected
from mechanex_jax.storage.json_values import JsonValue, parse_json
from mechanex_jax.validation import HALF_OF_A_PAIR, check_utf8

Schema: TypeAlias = "bool | Mapping[str, JsonValue]"

SCHEMAS = (
    "a JSON Schema: a dict, True or False, a JSON text, a pathlib.Path to one, a class (pydantic model, dataclass, TypedDict, "
    "Enum), or OpenAI's tool or response_format"
)
NUMBERS = ("short", "any")

_FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
_PARAMETERS = ("parameters", "input_schema", "inputSchema")  # a tool's schema, as OpenAI, Anthropic and MCP call it


@dataclasses.dataclass(frozen=True)
class JsonOptions:
    """How the JSON of a schema is written.

    Attributes:
      whitespace: let it have some between its parts.
      closed: an object has only the keys that its schema lists, unless the schema says something about others; None: where the
        schema comes from a class or a strict tool.
      numbers: "short" or "any", see `mechanex_jax.constraints.compile`.
    """

    whitespace: bool = False
    closed: bool | None = None
    numbers: str = "short"


@dataclasses.dataclass(frozen=True)
class SchemaSource:
    """A JSON Schema that has been read.

    Attributes:
      schema: as plain JSON data.
      closed: whether it comes from something that means no other keys than it lists: a class, or a strict tool.
    """

    schema: Schema
    closed: bool


def is_schema_class(source: object) -> bool:
    """Whether a value is a class or a type, such as `list[int]`, that has a JSON Schema, or one of pydantic's adapters."""
    return (
        hasattr(source, "model_json_schema")
        or (isinstance(source, type) and (dataclasses.is_dataclass(source) or issubclass(source, enum.Enum)))
        or (isinstance(source, type) and issubclass(source, dict) and hasattr(source, "__total__"))  # a TypedDict
        or typing.get_origin(source) is not None
        or (not isinstance(source, Mapping) and callable(getattr(source, "json_schema", None)))
    )


def read_schema(source: object, name: str = "json_schema") -> SchemaSource:
    """Read a schema in any form that `json_schema` of `generate` takes.

    Args:
      source: see `SCHEMAS`.
      name: what an error calls it.

    Raises:
      ConstraintError: it is none of these, or not JSON.
    """
    if is_schema_class(source):
        return SchemaSource(_plain(_schema_of_class(source, name), name), True)
    if isinstance(source, Path):
        source = read_file(source, name)
    if isinstance(source, str | bytes):
        try:
            source = parse_json(source)
        except ValueError as error:
            raise _refusal(name, source, f"{SCHEMAS}; this text is not JSON ({error})") from None
    if not isinstance(source, Mapping | bool):
        raise _refusal(name, source, SCHEMAS)
    schema, closed = _unwrapped(source, name)
    return SchemaSource(_plain(schema, name), closed)


def _refusal(name: str, got: object, wanted: str, action: str = "Give the schema itself.") -> ConstraintError:
    return ConstraintError(expected(name, got, wanted, action).message)


def _plain(schema: object, name: str) -> Schema:
    try:
        text = json.dumps(dict(schema) if isinstance(schema, Mapping) else schema, allow_nan=False, ensure_ascii=False)
        plain = json.loads(text.encode())
    except UnicodeEncodeError:
        raise _refusal(name, schema, "text that UTF-8 can hold", HALF_OF_A_PAIR) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(name, schema, f"{SCHEMAS} that can be written as JSON ({error})") from None
    if not isinstance(plain, dict | bool):
        raise _refusal(name, schema, SCHEMAS)
    return plain


def _schema_of_class(source: object, name: str) -> object:
    for method in ("model_json_schema", "json_schema"):  # of a pydantic model, of a TypeAdapter
        if (schema_of := getattr(source, method, None)) is not None:
            return schema_of()
    if isinstance(source, type) and issubclass(source, enum.Enum):
        return {"enum": [member.value for member in source]}
    try:
        import pydantic
    except ImportError:
        wanted = "a dict or a JSON text, where pydantic is not installed"
        raise _refusal(name, source, wanted, "Install pydantic to give dataclasses, TypedDicts and types.") from None
    try:
        adapter: pydantic.TypeAdapter[object] = pydantic.TypeAdapter(source)  # type: ignore[arg-type]
        return adapter.json_schema()
    except pydantic.errors.PydanticUserError as error:
        raise _refusal(name, source, "a type of which pydantic has a JSON Schema", str(error).partition("\n")[0]) from None


def _unwrapped(source: bool | Mapping, name: str) -> tuple[object, bool]:
    """The schema inside OpenAI's tool or `response_format`, and whether that is strict; a bare schema as it is.

    No JSON Schema has the types "function" and "json_schema"; a tool without a type has a name and a schema of parameters.
    """
    if isinstance(source, bool):
        return source, False
    kind = source.get("type")
    if kind == "json_object":
        return {"type": "object"}, False
    if kind == "json_schema":
        inner = source.get("json_schema", source)
        if isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping | bool):
            return inner["schema"], inner.get("strict") is True
        raise _refusal(name, source, 'a response_format {"type": "json_schema", "json_schema": {"schema": {...}}}')
    tool = source.get("function", source) if kind == "function" else source
    if kind == "function" or (kind is None and isinstance(source.get("name"), str)):
        parameters = next((tool[key] for key in _PARAMETERS if isinstance(tool.get(key), Mapping)), None)
        if parameters is not None:
            return parameters, tool.get("strict") is True
        if kind == "function":
            return {"type": "object", "properties": {}}, True  # a tool that takes no arguments
    return source, False


def read_file(path: Path, name: str) -> str:
    """The text of a file that an argument names.

    Raises:
      ConstraintError: there is none, or it can't be read as UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(name, path, f"the path of a text file ({error})", "Correct the path, or give the text itself.") from None


def read_grammar(source: object) -> str:
    """The text of a grammar, given as such or as the `pathlib.Path` of its file.

    Raises:
      ConstraintError: the file can't be read.
      ArgumentError: neither a string nor a path.
    """
    if isinstance(source, Path):
        if source.suffix == ".json":
            raise _refusal("grammar", source, "a grammar in GBNF or Lark notation", "Give a JSON Schema as json_schema.")
        source = read_file(source, "grammar")
    return _text("grammar", source)


def read_regex(source: object) -> str:
    """The text of a pattern, given as such or as what `re.compile` returns, whose flags it then begins with.

    Raises:
      ArgumentError: neither, or a pattern of bytes.
    """
    if isinstance(source, re.Pattern):
        letters = "".join(letter for letter, flag in _FLAGS.items() if source.flags & flag)
        return (f"(?{letters})" if letters else "") + _text("regex", source.pattern)
    return _text("regex", source)


def read_choices(source: object, name: str = "choices") -> list[str]:
    """The texts to choose from, each once: strings in a list, or the values of an Enum.

    Raises:
      ArgumentError: no list of strings, or an empty one.
    """
    values = [member.value for member in source] if isinstance(source, type) and issubclass(source, enum.Enum) else source
    if not isinstance(values, list | tuple) or not values or not all(isinstance(value, str) for value in values):
        raise expected(name, source, "a list of strings, at least one, or an Enum of them", "Give JSON values as json_schema.")
    check_utf8(name, values)
    return list(dict.fromkeys(values))


def _text(name: str, source: object) -> str:
    if not isinstance(source, str):
        raise expected(name, source, "a string")
    check_utf8(name, source)
    return source
