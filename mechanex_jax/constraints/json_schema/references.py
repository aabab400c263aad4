"""Places in schema documents, the schemas to which their references lead, and the draft whose keywords count there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jsonschema
import jsonschema_specifications
import referencing
import referencing.exceptions
import referencing.jsonschema

from mechanex_jax.constraints.sources import Schema
from mechanex_jax.errors import ConstraintError, shown
from mechanex_jax.storage.json_values import JsonValue

if TYPE_CHECKING:
    from referencing import Specification
    from referencing._core import Resolved, Resolver
    from referencing.jsonschema import Schema as AnySchema

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_DEFINITIONS = re.compile(r"#|#/(\$defs|definitions)/[^/]*")  # references whose targets have been checked with the document
_FIXING_WORDS = (*_REFERENCES, "$id", "$schema")  # what a schema with one of these means depends on where it stands


@dataclasses.dataclass(frozen=True)
class Dialect:
    """A draft of JSON Schema.

    Attributes:
      number: 4, 6, 7, 2019 or 2020.
      validator: jsonschema's class for it.
    """

    number: int
    validator: Any

    @property
    def specification(self) -> Specification[AnySchema]:
        """referencing's description of it."""
        return referencing.jsonschema.specification_with(self.validator.META_SCHEMA["$schema"])

    @property
    def keywords(self) -> Container[str]:
        """The keywords that assert something."""
        return self.validator.VALIDATORS

    @property
    def ref_stands_alone(self) -> bool:
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


def dialect_of(schema: object, default: Dialect) -> Dialect:
    """The dialect that `$schema` names, the default if it names none that is known."""
    name = schema.get("$schema") if isinstance(schema, Mapping) else None
    return DIALECTS.get(name.rstrip("#"), default) if isinstance(name, str) else default


def checked_dialect(schema: Schema) -> Dialect:
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
    first: ConstraintError | None = None
    for dialect in choices:
        error = schema_error(schema, dialect)
        if error is None:
            return dialect
        first = first or ConstraintError(
            f"json_schema is not a valid schema: {error.message} (at {pointer(error.absolute_path)}). Correct it there."
        )
    raise first or ConstraintError("json_schema is not a valid schema.")


def schema_error(schema: Schema, dialect: Dialect) -> jsonschema.SchemaError | None:
    """jsonschema's objection to a schema, by the metaschema of a dialect; None if there is none."""
    try:
        # Patterns are ECMA-262's, and checked as such when they are compiled; the default checker takes Python's.
        dialect.validator.check_schema(schema, format_checker=jsonschema.FormatChecker(formats=()))
    except jsonschema.SchemaError as error:
        return error
    return None


def pointer(path: Iterable[str | int]) -> str:
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

    schema: Schema
    resolver: Resolver[Any]
    dialect: Dialect
    path: str
    key: tuple

    def get(self, keyword: str, default: Any = None) -> Any:
        """A keyword's value; the metaschema has checked its type."""
        return default if isinstance(self.schema, bool) else self.schema.get(keyword, default)

    def __contains__(self, keyword: str) -> bool:
        return not isinstance(self.schema, bool) and keyword in self.schema


class Documents:
    """The documents of one compilation: the user's, and the metaschemas that come with jsonschema.

    Attributes:
      root: the user's schema.
    """

    def __init__(self, schema: Schema, dialect: Dialect):
        resource = dialect.specification.create_resource(schema)
        base = resource.id() or ""
        registry = jsonschema_specifications.REGISTRY.with_resource(base, resource)
        self._movable: dict[int, bool] = {}
        self._checked: set[tuple[int, int]] = set()  # (dialect, id) of targets of references
        self._fixing_words = (*_FIXING_WORDS, "id") if dialect.number == 4 else _FIXING_WORDS
        text = json.dumps(schema)
        self._dynamic = '"$dynamicRef"' in text or '"$recursiveRef"' in text or '"$ref": "http' in text
        self.root = self._place(schema, registry.resolver(base_uri=base), dialect, "#")

    def _place(self, schema: Schema, resolver: Resolver[Any], dialect: Dialect, path: str) -> Place:
        if self._is_movable(schema):
            key: tuple = (dialect.number, json.dumps(schema))
        else:
            scope = tuple(dict.fromkeys(uri for uri, _ in resolver.dynamic_scope())) if self._dynamic else ()
            key = (dialect.number, id(schema), resolver._base_uri, scope)
        return Place(schema, resolver, dialect, path, key)

    def _is_movable(self, schema: Schema | JsonValue) -> bool:
        """Whether a schema means the same anywhere."""
        if not isinstance(schema, Mapping | list):
            return True
        if id(schema) not in self._movable:
            inner = schema.values() if isinstance(schema, Mapping) else schema
            fixed = isinstance(schema, Mapping) and any(word in schema for word in self._fixing_words)
            self._movable[id(schema)] = not fixed and all(map(self._is_movable, inner))
        return self._movable[id(schema)]

    def child(self, place: Place, *steps: str | int) -> Place:
        """The subschema at `steps` below a place."""
        schema: Any = place.schema
        for step in steps:
            schema = schema[step]
        dialect, resolver = dialect_of(schema, place.dialect), place.resolver
        if isinstance(schema, Mapping) and not (dialect.ref_stands_alone and "$ref" in schema):
            resolver = resolver.in_subresource(dialect.specification.create_resource(schema))
        return self._place(schema, resolver, dialect, place.path + pointer(steps)[1:])

    def targets(self, place: Place) -> Iterator[Place]:
        """The schemas to which the references of a place lead."""
        for word in _REFERENCES:
            if word not in place or word not in place.dialect.keywords:
                continue
            target = place.get(word)
            if not isinstance(target, str) and word != "$recursiveRef":  # draft 4 leaves it open
                raise ConstraintError(f"{word} at {place.path} is {shown(target)}, which is not a text. Correct it there.")
            try:
                if word == "$recursiveRef":
                    resolved = referencing.jsonschema.lookup_recursive_ref(place.resolver)
                else:
                    resolved = place.resolver.lookup(str(target))
            except (referencing.exceptions.Unresolvable, referencing.exceptions.NoSuchAnchor, KeyError, ValueError) as error:
                raise ConstraintError(
                    f"{word} at {place.path} leads nowhere: {target!r} ({type(error).__name__}). Only this document and the "
                    "published metaschemas can be referred to; put the definition under $defs."
                ) from None
            if not isinstance(resolved.contents, bool | Mapping):
                raise ConstraintError(f"{word} at {place.path} leads to {target!r}, which is not a schema.")
            entered = self._resolved_place(resolved, place.dialect, str(target))
            self._check_target(word, place, entered)
            yield entered

    def _check_target(self, word: str, place: Place, target: Place) -> None:
        """Raise unless a reference leads to a schema: only where schemas are known to stand has the document been checked."""
        usual, key = _DEFINITIONS.fullmatch(target.path), (target.dialect.number, id(target.schema))
        if (usual and (usual[1] != "$defs" or target.dialect.number >= 2019)) or key in self._checked:
            return
        error = schema_error(target.schema, target.dialect)
        if error is not None:
            raise ConstraintError(
                f"{word} at {place.path} leads to {target.path!r}, which is not a schema: {error.message} (at "
                f"{pointer(error.absolute_path)} in it). Refer to a schema, such as one under $defs."
            )
        self._checked.add(key)

    def _resolved_place(self, resolved: Resolved[Any], dialect: Dialect, path: str) -> Place:
        # The document that a reference enters may name its own dialect.
        try:
            outer = resolved.resolver.lookup(resolved.resolver._base_uri).contents
        except referencing.exceptions.Unresolvable:
            outer = None
        dialect = dialect_of(resolved.contents, dialect_of(outer, dialect))
        return self._place(resolved.contents, resolved.resolver, dialect, path)
