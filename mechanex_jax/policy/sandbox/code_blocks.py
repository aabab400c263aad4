"""Code in a model's answer: fenced blocks of Markdown."""

from __future__ import annotations

import re
import textwrap

_FENCE = re.compile(r"^[ \t]*(?:>[ \t]*)?(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_ALIASES = {"python": ("python", "py", "python3")}


def _fenced_blocks(answer: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block; one that is not closed reaches to the end."""
    blocks: list[tuple[str, str]] = []
    fence, language, lines = "", "", []
    for line in answer.splitlines():
        match = _FENCE.match(line)
        if not fence and match:
            fence, lines = match[1], []
            language = (match[2].strip(" \t{}.").split() or [""])[0].lower()
        elif match and match[1].startswith(fence) and not match[2].strip():
            blocks.append((language, "\n".join(lines)))
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        blocks.append((language, "\n".join(lines)))
    return [(name, textwrap.dedent(block).strip("\n")) for name, block in blocks if block.strip()]


def extract_code(answer: str, language: str = "python") -> str:
    """Take the code out of a model's answer: its first fenced block in the language, else its first block, else all of it.

    Args:
      answer: text. A block that was cut off before its end counts.
      language: as written after the fence; for "python" also "py" and "python3".

    Returns:
      The code without common indentation.
    """
    blocks = _fenced_blocks(answer)
    names = _ALIASES.get(language.lower(), (language.lower(),))
    named = [block for name, block in blocks if name in names]
    return (named or [block for _, block in blocks] or [textwrap.dedent(answer).strip("\n")])[0]
