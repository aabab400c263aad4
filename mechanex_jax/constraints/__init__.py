"""`mx.constraints`: regular expressions, grammars and JSON schemas that a generated text has to match.

`compile` turns one into a LogitsTransform for one vocabulary, which masks tokens inside the jitted loop. Compiling runs on the
host alone: nothing in this package imports JAX but `device`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.signatures import suggests_arguments

if TYPE_CHECKING:
    from mechanex_jax.constraints.compiler import HasTokenizer
    from mechanex_jax.constraints.device.token_mask import Constraint
    from mechanex_jax.tokenization.tokenizer import Tokenizer
    from mechanex_jax.tokenization.vocabulary import Vocabulary


@suggests_arguments
def compile(
    *,
    json_schema: object = None,
    regex: str | None = None,
    grammar: str | None = None,
    tokenizer: HasTokenizer | Tokenizer | Vocabulary,
    whitespace: bool = False,
) -> Constraint:
    """Compile a regular expression, a grammar or a JSON schema for a vocabulary.

    >>> from mechanex_jax.tokenization.vocabulary import Vocabulary
    >>> constraint = compile(regex="ab?", tokenizer=Vocabulary.from_tokens([b"a", b"b", b"ab"]))
    >>> constraint.matches("ab"), constraint.allowed("").tolist(), constraint.allowed("a").tolist()
    (True, [0, 2], [1])

    >>> pairs = compile(grammar='root ::= "a" root? "b"', tokenizer=Vocabulary.from_tokens([b"a", b"b", b"c"]))
    >>> pairs.matches("aabb"), pairs.allowed("aab").tolist(), pairs.allowed("ab").tolist()
    (True, [1], [])

    Args:
      json_schema: a dict, True, a JSON text, or a pydantic model (draft 2020-12, or the one that `$schema` names).
      regex: in Python's syntax; the whole text matches.
      grammar: GBNF (`root ::= ...`), Lark (`start: ...`), or "regex:PATTERN". Exactly one of the three.
      tokenizer: what `mx.load` returns, its `.tokenizer`, or a `Vocabulary`.
      whitespace: let JSON have some between its parts.

    Returns:
      A LogitsTransform for `mx.loops.decode` and friends, and `constraint=` of `generate`. On the host it answers
      `.matches(text)`, `.allowed(prefix)` (the ids that may come next), `.minimum` (the least `max_tokens`), `.stats`.

    Raises:
      ConstraintError: it is wrong, unsupported (by name and place), too large, or accepts no text.
      ArgumentError: not exactly one of the three, or no tokenizer.
    """
    from mechanex_jax import rows
    from mechanex_jax.constraints import compiler
    from mechanex_jax.constraints.device import token_mask

    sources = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    chosen = [(kind, source) for kind, source in sources.items() if source is not None]
    if len(chosen) != 1:
        raise expected("compile", Verbatim(f"{len(chosen)} constraints"), "one of json_schema, regex and grammar")
    kind, source = chosen[0]
    compiled = compiler.compile_for(kind, source, whitespace, compiler.Target.of(tokenizer))
    return rows.only_row(token_mask.pack_constraints([compiled.tables], compiled.vocabulary, compiled=compiled))


__all__ = ["compile"]
