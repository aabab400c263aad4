"""Text constraints by JSON Schema: a schema to one pushdown automaton over the bytes of JSON texts.

The way of a schema, `compile.pushdown_automaton`:

1. `references`: the documents, the draft whose keywords count, and where `$ref` leads; a schema at its place is a `Place`.
2. `to_formula`: the schema becomes a formula of logic (`formula`) whose leaves are questions about a value. The function of
   each keyword stands in `keywords` (any type, numbers, strings, logic), `applicators` (members of objects, items of arrays)
   or `unevaluated`.
   `closed` makes a second formula, of the texts whose objects have listed keys only.
3. `to_automaton`: states that read a value for which the formula holds, by type: `scalars` (with `numbers`, `strings`,
   `formats`; bytes in `string_bytes`), `objects` (with `property_keys`) and `arrays`. The last two share `containers`, which
   goes from part to part by `steps`. The states lie in `rules`.

A new keyword is a function with the decorator `keyword` in one of the three files of keywords; most combine leaves that there
are. A new leaf is one more row of the table in `to_formula`, and a case in the module that decides it: `numbers.classify`,
`strings.Strings`, `_ArrayRule._update` or `_ObjectRule._updates`. A new `format` is an entry of `formats.PATTERNS`.
Cases for all go to `tests/support/schema_cases.py`.
"""

from mechanex_jax.constraints.json_schema.compile import pushdown_automaton
from mechanex_jax.constraints.json_schema.spelling import misspelt, warn_of_misspelt

__all__ = ["misspelt", "pushdown_automaton", "warn_of_misspelt"]
