"""Places in schema documents: where references lead, and which draft's words count there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import jsonschema_specifications
import referencing
import referencing.exceptions
import referencing.jsonschema

from mechanex_jax.errors import ConstraintError

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_BY_PLACE = (*_REFERENCES, "$id", "$schema")  # a schema with one of these means what it means by where it stands


@dataclasses.dataclass(frozen=True)
class Dialect:
    """What one draft does differently.

    Attributes:
      number: 4, 6, 7, 2019 or 2020.
      validator: jsonschema's class for it.
    """

    number: int
    validator: Any

    @property
    def specification(self) -> Any:
        return referencing.jsonschema.specification_with(self.validator.META_SCHEMA["$schema"])

    @property
    def lonely_references(self) -> bool:
        """Whether the keywords beside `$ref` are ignored."""
        return self.number <= 7


DIALECTS = {
    "http://json-schema.org/draft-04/schema": Dialect(4, jsonschema.Draft4Validator),
    "http://json-schema.org/draft-06/schema": Dialect(6, jsonschema.Draft6Validator),
    "http://json-schema.org/draft-07/schema": Dialect(7, jsonschema.Draft7Validator),
    "https://json-schema.org/draft/2019-09/schema": Dialect(2019, jsonschema.Draft201909Validator),
    "https://json-schema.org/draft/2020-12/schema": Dialect(2020, jsonschema.Draft202012Validator),
}
_NEWEST = DIALECTS["https://json-schema.org/draft/2020-12/schema"]


_TOO_OLD = ("http://json-schema.org/draft-03/schema", "http://json-schema.org/draft-02/schema")


def dialect_of(schema: Any, default: Dialect) -> Dialect:
    """The dialect that `$schema` names, the default if it names none that is known."""
    name = schema.get("$schema") if isinstance(schema, Mapping) else None
    return DIALECTS.get(name.rstrip("#"), default) if isinstance(name, str) else default


def checked_dialect(schema: Any) -> Dialect:
    """The dialect of a whole document, checked against its metaschema.

    A document that names no dialect and is no draft 2020-12 schema may still be a draft-07 or draft-04 one (an array as
    `items`, a boolean `exclusiveMinimum`).

    Raises:
      ConstraintError: it isn't a schema; the message and the path are jsonschema's.
    """
    if isinstance(schema, Mapping) and "$schema" in schema:
        if str(schema["$schema"]).rstrip("#") in _TOO_OLD:
            raise ConstraintError(
                f"json_schema is of {schema['$schema']}, which is not supported. Rewrite it for draft-04 or later."
            )
        choices = [dialect_of(schema, _NEWEST)]
    else:
        choices = [_NEWEST, *(DIALECTS[f"http://json-schema.org/draft-0{n}/schema"] for n in (7, 4))]
    first: Exception | None = None
    for dialect in choices:
        try:
            # Patterns are ECMA-262's, and checked as such when they are compiled; the default checker takes Python's.
            dialect.validator.check_schema(schema, format_checker=jsonschema.FormatChecker(formats=()))
        except jsonschema.SchemaError as error:
            first = first or ConstraintError(
                f"json_schema is not a valid schema: {error.message} (at {pointer(error.absolute_path)}). Correct it there."
            )
        else:
            return dialect
    raise first or ConstraintError("json_schema is not a valid schema.")


def pointer(path: Any) -> str:
    """A JSON pointer as a fragment, for messages."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A schema where it stands.

    Attributes:
      schema: a dict or a boolean.
      resolver: knows the base URI and the dynamic scope.
      dialect: whose keywords count.
      path: of messages; after a reference, the path behind it.
      key: equal for places of equal meaning.
    """

    schema: Any
    resolver: Any
    dialect: Dialect
    path: str
    key: tuple

    def get(self, keyword: str, default: Any = None) -> Any:
        return self.schema.get(keyword, default)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.schema


class Documents:
    """The documents of one compilation: the user's, and the metaschemas that come with jsonschema."""

    def __init__(self, schema: Any, dialect: Dialect):
        self.root_schema = schema
        resource = dialect.specification.create_resource(schema)
        base = resource.id() or ""
        registry = jsonschema_specifications.REGISTRY.with_resource(base, resource)
        self._movable: dict[int, bool] = {}
        self._words = (*_BY_PLACE, "id") if dialect.number == 4 else _BY_PLACE
        text = json.dumps(schema)
        self._dynamic = '"$dynamicRef"' in text or '"$recursiveRef"' in text or '"$ref": "http' in text
        self.root = self._place(schema, registry.resolver(base_uri=base), dialect, "#")

    def _place(self, schema: Any, resolver: Any, dialect: Dialect, path: str) -> Place:
        if self._is_movable(schema):
            key: tuple = (dialect.number, json.dumps(schema))
        else:
            scope = tuple(dict.fromkeys(uri for uri, _ in resolver.dynamic_scope())) if self._dynamic else ()
            key = (dialect.number, id(schema), resolver._base_uri, scope)
        return Place(schema, resolver, dialect, path, key)

    def _is_movable(self, schema: Any) -> bool:
        """Whether a schema means the same anywhere."""
        if not isinstance(schema, dict | list):
            return True
        known = self._movable.get(id(schema))
        if known is None:
            if isinstance(schema, dict):
                known = not any(word in schema for word in self._words) and all(map(self._is_movable, schema.values()))
            else:
                known = all(map(self._is_movable, schema))
            self._movable[id(schema)] = known
        return known

    def child(self, place: Place, *steps: str | int) -> Place:
        """The subschema at `steps` below a place."""
        schema = place.schema
        for step in steps:
            schema = schema[step]
        path = place.path + pointer(steps)[1:]
        return self._at(schema, place.resolver, place.dialect, path)

    def _at(self, schema: Any, resolver: Any, dialect: Dialect, path: str) -> Place:
        dialect = dialect_of(schema, dialect)
        if isinstance(schema, Mapping) and not (dialect.lonely_references and "$ref" in schema):
            resolver = resolver.in_subresource(dialect.specification.create_resource(schema))
        return self._place(schema, resolver, dialect, path)

    def referred(self, place: Place) -> Iterator[Place]:
        """What the references of a place lead to."""
        for word in _REFERENCES:
            if word not in place or word not in place.dialect.validator.VALIDATORS:
                continue
            target, resolver = place.get(word), place.resolver
            try:
                if word == "$recursiveRef":
                    found = referencing.jsonschema.lookup_recursive_ref(resolver)
                else:
                    found = resolver.lookup(target)
            except (referencing.exceptions.Unresolvable, referencing.exceptions.NoSuchAnchor, KeyError, ValueError) as error:
                raise ConstraintError(
                    f"{word} at {place.path} leads nowhere: {target!r} ({type(error).__name__}). Only this document and the "
                    "published metaschemas can be referred to; put the definition under $defs."
                ) from None
            if not isinstance(found.contents, bool | Mapping):
                raise ConstraintError(f"{word} at {place.path} leads to {target!r}, which is not a schema.")
            yield self._place_found(found, place.dialect, str(target))

    def _place_found(self, found: Any, dialect: Dialect, path: str) -> Place:
        # The document that a reference enters may name its own dialect.
        try:
            outer = found.resolver.lookup(found.resolver._base_uri).contents
        except referencing.exceptions.Unresolvable:
            outer = None
        dialect = dialect_of(found.contents, dialect_of(outer, dialect))
        return self._place(found.contents, found.resolver, dialect, path)
