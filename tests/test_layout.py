"""Who may import whom, and that the namespaces stay what they are."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mechanex_jax

ROOT = Path(mechanex_jax.__file__).parent
# From the bottom up; a module may import its own layer and those below.
LAYERS = [
    {"errors"},
    {"types", "paths", "files", "checks"},
    {"rows"},
    {"edits", "transforms"},
    {"constraints", "architectures", "text"},
    {"checkpoints", "loops", "methods"},
    {"loading", "config"},
    {"batch"},
    {"runners", "requests", "textvote"},
    {"engine"},
    {"calls"},
    {"generation"},
    {"steering"},
    {"policy"},
    {"runtime"},
    {"joboutput"},
    {"jobs"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules():
    return sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imports(path: Path) -> set[str]:
    """Top-level names below mechanex_jax that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mechanex_jax":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("mechanex_jax.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=str)
def test_no_module_imports_upwards(path):
    own = path.parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no place in the layers: decide on one"
    if own != "cli":
        upwards = {name for name in imports(path) if name in LEVEL and LEVEL[name] > LEVEL[own]}
        assert not upwards, f"{path} imports {upwards}"


HOST = [p for p in modules() if p.parts[0] in ("constraints", "checkpoints") and p.name != "automaton.py"]


@pytest.mark.parametrize("path", HOST, ids=str)
def test_host_code_never_imports_jax(path):
    tree = ast.parse((ROOT / path).read_text())
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
