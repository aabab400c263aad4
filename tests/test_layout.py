"""Who may import whom, and that the namespaces stay what they are."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mechanex_jax

ROOT = Path(mechanex_jax.__file__).parent

# From the bottom up: a folder or file may import those of its own line and those below.
LAYERS = [
    {"errors", "progress", "representation", "warning", "xla"},
    {"rows", "tokenization", "signatures", "storage", "validation", "checkpoint_fields"},
    {"transforms", "edits", "constraints"},
    {"loops", "architectures", "checkpoints"},
    {"loading"},
    {"engine", "session"},
    {"steering"},
    {"remote", "policy"},
    {"generation"},
    {"serving", "distributed"},
    {"runtime"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Inside constraints: what each part may import of the others.
CONSTRAINTS = {
    "automata": set(),
    "regex": {"automata"},
    "grammar": {"regex", "automata"},
    "sources": set(),
    "json_schema": {"regex", "automata", "sources"},
    "token_index": {"automata"},
    "compiled": {"token_index", "automata"},
    "cache": {"compiled", "token_index", "automata"},
    "device": {"compiled", "token_index"},
    "compiler": {"cache", "compiled", "token_index", "automata", "regex", "grammar", "json_schema", "sources"},
    "__init__": {"compiler", "device", "compiled", "sources"},
}


def _name(path: Path) -> str:
    parts = ("mechanex_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}
INNER = sorted(set(MODULES) - {"mechanex_jax"})


@functools.cache
def imports(name: str) -> frozenset[str]:
    """Modules of the library that a module imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mechanex_jax":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return frozenset(found - {"mechanex_jax"})


def part(name: str, depth: int = 1) -> str:
    return name.split(".")[depth] if len(name.split(".")) > depth else "__init__"


@pytest.mark.parametrize("name", INNER)
def test_no_module_imports_upwards(name):
    assert part(name) in LEVEL, f"{name} has no place in the layers: decide on one"
    upwards = {other for other in imports(name) if LEVEL[part(other)] > LEVEL[part(name)]}
    assert not upwards


@pytest.mark.parametrize("name", [name for name in INNER if part(name) == "constraints"])
def test_the_parts_of_constraints_import_in_their_order(name):
    own = part(name, 2)
    others = {part(other, 2) for other in imports(name) if part(other) == "constraints"} - {own}
    assert others <= CONSTRAINTS[own]


def circles() -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm. A package may gather what is below it."""
    edges = {
        name: {other for other in imports(name) if other in MODULES and not other.startswith(f"{name}.")} for name in MODULES
    }
    # Importing a module runs the packages above it, but not those that it lies in: they are being imported already.
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for name in MODULES:
        if name not in index:
            visit(name)
    return groups


def test_no_modules_import_each_other_in_a_circle():
    assert circles() == []


HOST = [
    name for name in INNER if part(name) in ("constraints", "checkpoints", "tokenization", "storage") and "device" not in name
]


@pytest.mark.parametrize("name", HOST)
def test_host_code_never_imports_jax(name):
    tree = ast.parse(MODULES[name].read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {name for name in names if name.split(".")[0] in ("jax", "flax")}


def test_namespaces_stay_what_they_are_when_every_submodule_is_imported():
    before = {name: getattr(mechanex_jax, name) for name in mechanex_jax.__all__}
    for module in pkgutil.walk_packages([str(ROOT)], "mechanex_jax."):
        if not module.name.startswith("mechanex_jax._"):
            importlib.import_module(module.name)
    assert {name: getattr(mechanex_jax, name) for name in mechanex_jax.__all__} == before


def test_importing_the_library_loads_no_heavy_module_and_touches_no_file():
    code = (
        "import sys, mechanex_jax; "
        "print([m for m in ('flax', 'optax', 'torch', 'transformers', 'tokenizers', 'gguf', 'rich', 'typer', "
        "'huggingface_hub', 'safetensors', 'matplotlib', 'lark', 'jsonschema') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert out.stdout.strip() == "[]"
