"""JSON Schema to an automaton that accepts the JSON texts of the valid values.

Drafts 2020-12, 2019-09, 07, 06 and 04, by `$schema` (without it 2020-12, or the older draft that a schema can only be). A
schema becomes a formula of propositional logic over questions about the value (`schema_compiler`); each kind of value
becomes a rule that answers the questions that matter (`schema_rules`). So `not`, `oneOf`, `if` and
`unevaluatedProperties` are exact.

What the texts look like: no whitespace, or a bounded amount of it; the names of a `properties` keyword in its order, then other
keys; a string's characters may be escaped where nothing but its length is asked for, otherwise and in keys they are written as
JSON writers do. Two limits of finite automata remain: a key that no keyword names may come twice, and then counts twice for
minProperties and has to satisfy every keyword each time, though a reader keeps the last; numbers with an exponent are accepted
only where `schema_numbers` says so.

`format` is enforced for the values listed in `schema_formats`. Refused, by keyword and path: uniqueItems over more than ten
possible items, patterns with lookaround or back-references, references to other documents, schemas that refer to themselves
without reading anything, and whatever exceeds the limits on states and time.
"""

from __future__ import annotations

import json
from typing import Any

from mechanex_jax.constraints.automata.dfa import DEFAULT_LIMITS, CompileLimits
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton

# Importing them registers the keywords.
from mechanex_jax.constraints.json_schema import applicators, keywords  # noqa: F401
from mechanex_jax.constraints.json_schema.references import Documents, checked_dialect
from mechanex_jax.constraints.json_schema.strings import Strings
from mechanex_jax.constraints.json_schema.to_automaton import Rules
from mechanex_jax.constraints.json_schema.to_formula import Compiler
from mechanex_jax.errors import ConstraintError, expected


def pushdown_automaton(schema: Any, *, whitespace: bool = False, limits: CompileLimits = DEFAULT_LIMITS) -> PushdownAutomaton:
    """The texts of the values that a schema allows.

    Args:
      schema: a dict or a boolean, the JSON text of one, or a class with `model_json_schema()`, as pydantic's models are.
      whitespace: allow at most one line break followed by at most 16 spaces behind `{`, `[`, `,` and `:` and before `,`, `}`
        and `]`.
      limits: on states and time, of the whole and of every automaton in it.

    Raises:
      ConstraintError: not a schema (jsonschema's message and path), something that can't be held exactly (keyword and path),
        or a schema that no value satisfies.
    """
    schema = read(schema)
    dialect = checked_dialect(schema)
    compiler = Compiler(Documents(schema, dialect), Strings(limits))
    rules = Rules(compiler, limits, whitespace)
    root = rules.builder.rule("document")
    end = rules.builder.state(root, 0)
    try:
        rules.value(rules.builder.start(root), compiler.formula(compiler.documents.root), (), lambda truths: end)
        found = rules.finish(root)
    except RecursionError:
        raise ConstraintError("json_schema is nested too deeply. Put inner schemas under $defs and refer to them.") from None
    if not found.start:
        raise ConstraintError("No value satisfies json_schema: its keywords contradict each other. Loosen one of them.")
    return found


def read(schema: Any) -> Any:
    """The schema as plain JSON data."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    wanted = "a dict, a boolean, or the JSON text of a schema"
    if isinstance(schema, str | bytes):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise _wrong(schema, f"{wanted} ({error})") from None
    if not isinstance(schema, dict | bool):
        raise _wrong(schema, wanted)
    try:
        return json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _wrong(schema, f"{wanted} that can be written as JSON ({error})") from None


def _wrong(schema: Any, wanted: str) -> ConstraintError:
    return ConstraintError(expected("json_schema", schema, wanted, "Give the schema itself.").message)
