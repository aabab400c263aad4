"""JSON Schema to an automaton that accepts the JSON texts of the valid values.

Drafts 2020-12, 2019-09, 07, 06 and 04, by `$schema` (without it 2020-12, or the older draft that a schema can only be). A
schema becomes a formula of propositional logic over questions about the value (`to_formula`); each kind of value
becomes a rule that answers the questions that matter (`to_automaton`). So `not`, `oneOf`, `if` and
`unevaluatedProperties` are exact.

What the texts look like: no whitespace, or a bounded amount of it; the names of a `properties` keyword in its order, then other
keys; a string's characters may be escaped where nothing but its length is asked for, otherwise and in keys they are written as
JSON writers do. No key comes twice in an object; a key that no name is, and an item of `uniqueItems`, has no `\\u` in it, and
is remembered as a hash, so that a new one is, very rarely, taken for one that was there. Numbers are short, see
`numbers.classify`, and integers have no fraction, unless `numbers` says "any"; then a number with an exponent is accepted only
where `numbers` says so. Two limits remain: where a key's length is limited, or fewer than 16 characters may follow, a key that
is as long as it can be may come twice; and it then counts twice for minProperties.

`format` is enforced for the values listed in `formats`. Refused, by keyword and path: uniqueItems over more than ten possible
items that are not all strings of any length, patterns with lookaround or back-references, references to other documents,
schemas that refer to themselves without reading anything, and whatever exceeds the limits on states and work.
"""

from __future__ import annotations

import dataclasses

from mechanex_jax.constraints.automata.dfa import DEFAULT_LIMITS, CompileLimits
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton

# Importing them registers the keywords.
from mechanex_jax.constraints.json_schema import applicators, closed, keywords, unevaluated  # noqa: F401
from mechanex_jax.constraints.json_schema.arrays import read_array
from mechanex_jax.constraints.json_schema.formula import ARRAY, NUMBER, OBJECT, STRING
from mechanex_jax.constraints.json_schema.objects import read_object
from mechanex_jax.constraints.json_schema.references import Documents, checked_dialect
from mechanex_jax.constraints.json_schema.rules import Rules
from mechanex_jax.constraints.json_schema.scalars import Scalars
from mechanex_jax.constraints.json_schema.strings import Strings
from mechanex_jax.constraints.json_schema.to_automaton import ValueReader
from mechanex_jax.constraints.json_schema.to_formula import Translator
from mechanex_jax.constraints.sources import JsonOptions, read_schema
from mechanex_jax.errors import ConstraintError

_DEFAULT_OPTIONS = JsonOptions()


def pushdown_automaton(
    schema: object, *, options: JsonOptions = _DEFAULT_OPTIONS, limits: CompileLimits = DEFAULT_LIMITS
) -> PushdownAutomaton:
    """Compile a schema to the automaton of the JSON texts of the values that it allows.

    Args:
      schema: in any form that `sources.read_schema` reads.
      options: how its JSON is written. Whitespace is at most one line break followed by at most 16 spaces, behind `{`, `[`, `,`
        and `:` and before `,`, `}` and `]`.
      limits: on states and work, of the whole and of every automaton in it.

    Raises:
      ConstraintError: not a schema (jsonschema's message and path), something that can't be held exactly (keyword and path),
        or a schema that no value satisfies.
    """
    read = read_schema(schema)
    try:
        documents, strings = Documents(read.schema, checked_dialect(read.schema)), Strings(limits)
        rules = Rules(limits, options.whitespace)
        translator, scalars = Translator(documents, strings), Scalars(strings, rules, options.numbers == "short")
        readers = {NUMBER: scalars.read_number, STRING: scalars.read_string, OBJECT: read_object, ARRAY: read_array}
        root = rules.builder.rule("document")
        end = rules.builder.state(root, 0)
        formula = translator.formula(documents.root)
        if read.closed if options.closed is None else options.closed:
            formula = translator.formulas.all((formula, closed.closed(translator, documents.root)))
        values = ValueReader(translator, rules, readers, scalars.read_distinct_string)
        values.read(rules.builder.start(root), formula, (), lambda truths: end)
        pushdown = dataclasses.replace(rules.finish(root), longest=translator.longest)
    except RecursionError:
        raise ConstraintError("json_schema is nested too deeply. Put inner schemas under $defs and refer to them.") from None
    if not pushdown.start:
        raise ConstraintError(
            "No value satisfies json_schema: its keywords contradict each other, or what json_closed and json_numbers "
            "leave of its texts. Loosen one of them."
        )
    return pushdown
