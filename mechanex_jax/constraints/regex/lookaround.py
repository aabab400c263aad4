"""Lookaround at the ends of an ECMA-262 pattern, where most of it stands, rewritten as several expressions.

`^(?!A)(?=B)C` matches where `^C` does, `^(?:A)` does not and `^(?:B)` does; `C(?<!A)$` where `C$` does and `(?:A)$` does
not. Any other lookaround is refused.
"""

from __future__ import annotations

import functools

from mechanex_jax.constraints.automata.expression import Assertion, Concat, Lookaround, Node, sequence
from mechanex_jax.constraints.regex import ecma

_BEGIN, _END = Assertion("begin"), Assertion("end")


@functools.lru_cache(1024)
def split(pattern: str) -> tuple[tuple[bool, Node], ...]:
    """Split a pattern into expressions, each with whether a part of a string has to match it, that together say the same.

    Raises:
      ConstraintError: as `ecma.parse`.
    """
    conjuncts: list[tuple[bool, Node]] = []
    tree = ecma.parse_lookaround(pattern)
    parts = list(tree.parts) if isinstance(tree, Concat) else [tree]
    while parts[:1] == [_BEGIN] and len(parts) > 1 and isinstance(look := parts[1], Lookaround) and look.ahead:
        conjuncts.append((look.positive, sequence([_BEGIN, look.body])))
        del parts[1]
    while parts[-1:] == [_END] and len(parts) > 1 and isinstance(look := parts[-2], Lookaround) and not look.ahead:
        conjuncts.append((look.positive, sequence([look.body, _END])))
        del parts[-2]
    return tuple((positive, ecma.without_lookaround(pattern, node)) for positive, node in [*conjuncts, (True, sequence(parts))])
