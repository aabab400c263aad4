"""`mx.constraints`: regular expressions, grammars and JSON schemas that a generated text has to match.

`compile` turns one into a LogitsTransform for one vocabulary, which masks tokens inside the jitted loop. Compiling runs on the
host alone: nothing in this package imports JAX but `device`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mechanex_jax.constraints import sources
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.signatures import suggests_arguments
from mechanex_jax.validation import choice

if TYPE_CHECKING:
    from mechanex_jax.constraints.compiler import HasTokenizer
    from mechanex_jax.constraints.device.token_mask import Constraint
    from mechanex_jax.tokenization.tokenizer import Tokenizer
    from mechanex_jax.tokenization.vocabulary import Vocabulary


@suggests_arguments
def compile(
    *,
    json_schema: object = None,
    regex: str | re.Pattern[str] | None = None,
    grammar: str | Path | None = None,
    tokenizer: HasTokenizer | Tokenizer | Vocabulary,
    whitespace: bool = False,
    choices: Sequence[str] | type[enum.Enum] | None = None,
    closed: bool | None = None,
    numbers: str = "short",
) -> Constraint:
    """Compile a regular expression, a grammar, a JSON schema or a list of choices for a vocabulary.

    >>> from mechanex_jax.tokenization.vocabulary import Vocabulary
    >>> constraint = compile(regex="ab?", tokenizer=Vocabulary.from_tokens([b"a", b"b", b"ab"]))
    >>> constraint.matches("ab"), constraint.allowed("").tolist(), constraint.allowed("a").tolist()
    (True, [0, 2], [1])

    >>> pairs = compile(grammar='root ::= "a" root? "b"', tokenizer=Vocabulary.from_tokens([b"a", b"b", b"c"]))
    >>> pairs.matches("aabb"), pairs.allowed("aab").tolist(), pairs.allowed("ab").tolist()
    (True, [1], [])

    Args:
      json_schema: a dict, True, a JSON text, the `pathlib.Path` of one, a pydantic model, dataclass, TypedDict or Enum, or
        OpenAI's tool or `response_format` (draft 2020-12, or the one that `$schema` names).
      regex: in Python's syntax, or what `re.compile` returns, with its flags; the whole text matches.
      grammar: GBNF (`root ::= ...`), Lark (`start: ...`), "regex:PATTERN", or the `pathlib.Path` of one.
      tokenizer: what `mx.load` returns, its `.tokenizer`, or a `Vocabulary`.
      whitespace: let JSON have some between its parts.
      choices: the strings of which the text is one, or an Enum of them. Exactly one of `json_schema`, `regex`, `grammar` and
        `choices`.
      closed: `json_closed` of `generate`: None closes the objects of classes and of strict tools.
      numbers: `json_numbers` of `generate`: "short", or "any" for numbers of any length.

    Returns:
      A LogitsTransform for `mx.loops.decode` and friends, and `constraint=` of `generate`. On the host it answers
      `.matches(text)`, `.allowed(prefix)` (the ids that may come next), `.minimum` (the least `max_tokens`), `.stats`.

    Raises:
      ConstraintError: it is wrong, unsupported (by name and place), too large, or accepts no text.
      ArgumentError: not exactly one of the four, or no tokenizer.
    """
    from mechanex_jax import rows
    from mechanex_jax.constraints import compiler
    from mechanex_jax.constraints.device import token_mask

    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar, "choices": choices}
    chosen = [(kind, source) for kind, source in given.items() if source is not None]
    if len(chosen) != 1:
        raise expected("compile", Verbatim(f"{len(chosen)} constraints"), "one of json_schema, regex, grammar and choices")
    choice(*sources.NUMBERS)("numbers", numbers)
    kind, source = chosen[0]
    options = sources.JsonOptions(whitespace, closed, numbers)
    compiled = compiler.compile_for(kind, source, options, compiler.Target.of(tokenizer))
    return rows.only_row(token_mask.pack_constraints([compiled.tables], compiled.vocabulary, compiled=compiled))


__all__ = ["compile"]
