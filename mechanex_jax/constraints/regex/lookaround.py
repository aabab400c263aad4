"""Lookaround at the ends of a pattern, which is where most patterns with lookaround have it, as several patterns.

`^(?!A)(?=B)C` matches where `^C` does, `^(?:A)` does not and `^(?:B)` does; `C(?<!A)$` where `C$` does and `(?:A)$` does
not. Any other lookaround is left in place, to be refused.
"""

from __future__ import annotations

import re

_AHEAD = re.compile(r"\^\(\?([=!])")
_BEHIND = re.compile(r"\(\?<([=!])")


def split(pattern: str) -> list[tuple[bool, str]]:
    """Patterns with whether a string has to match them; together they say what the pattern says."""
    parts: list[tuple[bool, str]] = []
    try:
        while (found := _AHEAD.match(pattern)) and not _alternatives(pattern):
            end = _closing(pattern, 1)
            parts.append((found[1] == "=", f"^(?:{pattern[found.end() : end]})"))
            pattern = "^" + pattern[end + 1 :]
        while pattern.endswith(")$") and not _alternatives(pattern):
            start = _last_group(pattern)
            found = _BEHIND.match(pattern, start)
            if not found:
                break
            parts.append((found[1] == "=", f"(?:{pattern[found.end() : -2]})$"))
            pattern = pattern[:start] + "$"
    except (IndexError, StopIteration):  # unbalanced: for the parser to complain about
        pass
    return [*parts, (True, pattern)]


def _tokens(pattern: str) -> list[tuple[int, str, int]]:
    """Position, text and depth of parentheses and alternatives, outside of classes and escapes."""
    found, depth, at = [], 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            at += 1
            while pattern[at] != "]":
                at += 2 if pattern[at] == "\\" else 1
        elif char in "()|":
            depth -= char == ")"
            found.append((at, char, depth))
            depth += char == "("
        at += 1
    return found


def _alternatives(pattern: str) -> bool:
    return any(char == "|" and depth == 0 for _, char, depth in _tokens(pattern))


def _closing(pattern: str, start: int) -> int:
    """Where the group that opens at `start` closes."""
    tokens = _tokens(pattern)
    depth = next(depth for at, _, depth in tokens if at == start)
    return next(at for at, char, d in tokens if char == ")" and d == depth and at > start)


def _last_group(pattern: str) -> int:
    """Where the group that closes last opens."""
    return [at for at, char, depth in _tokens(pattern) if char == "(" and depth == 0][-1]
