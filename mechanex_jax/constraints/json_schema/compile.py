"""JSON Schema to an automaton that accepts the JSON texts of the valid values.

Drafts 2020-12, 2019-09, 07, 06 and 04, by `$schema` (without it 2020-12, or the older draft that a schema can only be). A
schema becomes a formula of propositional logic over questions about the value (`to_formula`); each kind of value
becomes a rule that answers the questions that matter (`to_automaton`). So `not`, `oneOf`, `if` and
`unevaluatedProperties` are exact.

What the texts look like: no whitespace, or a bounded amount of it; the names of a `properties` keyword in its order, then other
keys; a string's characters may be escaped where nothing but its length is asked for, otherwise and in keys they are written as
JSON writers do. Two limits of finite automata remain: a key that no keyword names may come twice, and then counts twice for
minProperties and has to satisfy every keyword each time, though a reader keeps the last; numbers with an exponent are accepted
only where `numbers` says so.

`format` is enforced for the values listed in `formats`. Refused, by keyword and path: uniqueItems over more than ten
possible items, patterns with lookaround or back-references, references to other documents, schemas that refer to themselves
without reading anything, and whatever exceeds the limits on states and time.
"""

from __future__ import annotations

import json

from mechanex_jax.constraints.automata.dfa import DEFAULT_LIMITS, CompileLimits
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton

# Importing them registers the keywords.
from mechanex_jax.constraints.json_schema import applicators, keywords, unevaluated  # noqa: F401
from mechanex_jax.constraints.json_schema.arrays import read_array
from mechanex_jax.constraints.json_schema.formula import ARRAY, NUMBER, OBJECT, STRING
from mechanex_jax.constraints.json_schema.objects import read_object
from mechanex_jax.constraints.json_schema.references import Documents, Schema, checked_dialect
from mechanex_jax.constraints.json_schema.rules import Rules
from mechanex_jax.constraints.json_schema.scalars import Scalars
from mechanex_jax.constraints.json_schema.strings import Strings
from mechanex_jax.constraints.json_schema.to_automaton import ValueReader
from mechanex_jax.constraints.json_schema.to_formula import Translator
from mechanex_jax.errors import ConstraintError, expected


def pushdown_automaton(
    schema: object, *, whitespace: bool = False, limits: CompileLimits = DEFAULT_LIMITS
) -> PushdownAutomaton:
    """Compile a schema to the automaton of the JSON texts of the values that it allows.

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
    try:
        documents, strings, rules = Documents(schema, checked_dialect(schema)), Strings(limits), Rules(limits, whitespace)
        translator, scalars = Translator(documents, strings), Scalars(strings, rules)
        readers = {NUMBER: scalars.read_number, STRING: scalars.read_string, OBJECT: read_object, ARRAY: read_array}
        root = rules.builder.rule("document")
        end = rules.builder.state(root, 0)
        formula = translator.formula(documents.root)
        ValueReader(translator, rules, readers).read(rules.builder.start(root), formula, (), lambda truths: end)
        pushdown = rules.finish(root)
    except RecursionError:
        raise ConstraintError("json_schema is nested too deeply. Put inner schemas under $defs and refer to them.") from None
    if not pushdown.start:
        raise ConstraintError("No value satisfies json_schema: its keywords contradict each other. Loosen one of them.")
    return pushdown


def read(schema: object) -> Schema:
    """The schema as plain JSON data.

    Raises:
      ConstraintError: it is neither a schema nor the text or the model of one.
    """
    of_model = getattr(schema, "model_json_schema", None)
    if of_model is not None:
        schema = of_model()
    kinds = "a dict, a boolean, or the JSON text of a schema"
    if isinstance(schema, str | bytes):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise _not_a_schema(schema, f"{kinds} ({error})") from None
    if not isinstance(schema, dict | bool):
        raise _not_a_schema(schema, kinds)
    try:
        return json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_a_schema(schema, f"{kinds} that can be written as JSON ({error})") from None


def _not_a_schema(schema: object, kinds: str) -> ConstraintError:
    return ConstraintError(expected("json_schema", schema, kinds, "Give the schema itself.").message)
