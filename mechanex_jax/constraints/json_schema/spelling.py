"""Keywords that are probably misspelt. JSON Schema takes a word that it doesn't know for an annotation, which holds nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from mechanex_jax.constraints.sources import Schema
from mechanex_jax.storage.json_values import JsonValue
from mechanex_jax.warning import warn

# Where subschemas stand below a keyword: as its value, in a list, or by name.
_ONE = {
    *("additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames"),
    *("then", "unevaluatedItems", "unevaluatedProperties"),
}
_LIST = {"allOf", "anyOf", "items", "oneOf", "prefixItems"}
_NAMED = {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"}
_OTHERS = {
    *("$anchor", "$comment", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef", "$ref", "$schema"),
    *("$vocabulary", "const", "contentEncoding", "contentMediaType", "default", "dependentRequired", "deprecated"),
    *("description", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "id", "maxContains", "maxItems"),
    *("maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum"),
    *("multipleOf", "pattern", "readOnly", "required", "title", "type", "uniqueItems", "writeOnly"),
    # OpenAPI's and those of tools, which hold nothing here and are spelt like others.
    *("discriminator", "example", "externalDocs", "nullable", "strict", "xml"),
}
_KNOWN = _ONE | _LIST | _NAMED | _OTHERS
_BY_LOWER = {word.lower(): word for word in sorted(_KNOWN)}


def misspelt(schema: Schema | JsonValue, path: str = "#") -> Iterator[tuple[str, str, str]]:
    """For each word of a schema that is no keyword but like one: its place, the word, and the keyword."""
    if not isinstance(schema, dict):
        return
    for word, value in schema.items():
        if word not in _KNOWN and not word.startswith("x-"):
            near = difflib.get_close_matches(word.lower(), _BY_LOWER, n=1, cutoff=0.8)
            if near:
                yield path, word, _BY_LOWER[near[0]]
        elif word in _NAMED and isinstance(value, dict):
            for name, inner in value.items():
                yield from misspelt(inner, f"{path}/{word}/{name}")
        elif word in _LIST and isinstance(value, list):
            for index, inner in enumerate(value):
                yield from misspelt(inner, f"{path}/{word}/{index}")
        elif word in _ONE:
            yield from misspelt(value, f"{path}/{word}")


def warn_of_misspelt(schema: Schema) -> None:
    """Warn of each word of a schema that is probably a misspelt keyword, by its place and the keyword."""
    for path, word, keyword in misspelt(schema):
        warn(f"json_schema: {word!r} at {path} is no keyword, and holds nothing. Did you mean {keyword!r}?")
