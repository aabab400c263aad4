"""How often `Any` stands in the library's signatures, fields and annotations: `python tests/support/count_any.py`."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mechanex_jax"


def count(tree: ast.AST) -> int:
    """Names `Any` outside import statements."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def counts() -> Counter[str]:
    """Number by folder or file below the package."""
    found: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        found[path.relative_to(PACKAGE).parts[0]] += count(ast.parse(path.read_text()))
    return found


if __name__ == "__main__":
    for name, number in counts().most_common():
        print(f"{number:4}  {name}")
    print(f"{counts().total():4}  in all")
