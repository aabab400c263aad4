"""What the README, the pages of `docs` and the examples show runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def run(path: Path, folder: Path) -> str:
    """What a script prints; its stores lie in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MECHANEX_DATA": str(folder)}
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path):
    script = tmp_path / "page.py"
    local = "import mechanex_jax as mx\n\nmx.set_execution_mode('local')\n"
    script.write_text(local + "\n".join(blocks(page, "python")))
    run(script, tmp_path)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_its_page_shows(name, tmp_path):
    pattern = rf"^## {name}\.py\n.*?^(````?)\n(.*?)^\1\n"
    shown = re.search(pattern, (ROOT / "examples/README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None, f"examples/README.md does not show {name}.py"
    digits = re.compile(r"\d+")  # the last digits of measured numbers differ between processors
    assert digits.sub("0", run(ROOT / "examples" / f"{name}.py", tmp_path)) == digits.sub("0", shown[2])


@pytest.mark.parametrize("page", [*PAGES, "examples/README.md"])
def test_links_and_paths_of_a_page_exist(page):
    text = (ROOT / page).read_text()
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("http")]
    paths = re.findall(r"`((?:mechanex_jax|tests|benchmarks|examples|docs|models)/[\w/.]*)`", text)
    missing = [target for target in targets if target and not ((ROOT / page).parent / target).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
