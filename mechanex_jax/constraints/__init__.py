"""`mx.constraints`: what a text must be, compiled once for a vocabulary and held inside the jitted loop.

`compile` gives a LogitsTransform for one row. Compiling runs on the host alone: nothing in this package imports JAX but
`automaton`, the part on the device.
"""

from __future__ import annotations

from typing import Any

from mechanex_jax.errors import Verbatim, expected


def compile(
    *,
    json_schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    tokenizer: Any,
    whitespace: bool = False,
) -> Any:
    """Compile one constraint.

    Args:
      json_schema: a dict, True, a JSON text, or a pydantic model (draft 2020-12, or the one that `$schema` names).
      regex: in Python's syntax; the whole text matches.
      grammar: GBNF (`root ::= ...`), Lark (`start: ...`), or "regex:PATTERN". Exactly one of the three.
      tokenizer: what `mx.load` returns, its `.tokenizer`, or a `Vocabulary`.
      whitespace: let JSON have some between its parts.

    Returns:
      An `Automaton`: a LogitsTransform for `mx.loops.decode` and friends, and `constraint=` of `generate`. On the host it
      answers `.matches(text)`, `.allowed(prefix)` (the ids that may come next), `.minimum` (the least `max_tokens`), `.stats`.

    Raises:
      ConstraintError: it is wrong, unsupported (by name and place), too large, or accepts no text.
      ArgumentError: not exactly one of the three, or no tokenizer.
    """
    from mechanex_jax.constraints import compiler
    from mechanex_jax.constraints.device import token_mask

    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    chosen = [(kind, source) for kind, source in given.items() if source is not None]
    if len(chosen) != 1:
        raise expected("compile", Verbatim(f"{len(chosen)} constraints"), "one of json_schema, regex and grammar")
    for kind, source in chosen:
        if kind != "json_schema" and not isinstance(source, str):
            raise expected(kind, source, "a string")
    found = compiler.compile_for(*chosen[0], whitespace, compiler.Target.of(tokenizer))
    return token_mask.pack_constraints([found.tables], found.vocabulary, compiled=found)


__all__ = ["compile"]
