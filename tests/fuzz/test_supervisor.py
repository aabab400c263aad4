"""The runner of the fuzz targets finds what goes wrong, says how to run it again, and goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("works", None),
        ("refuses", None),
        ("raises", "KeyError"),
        ("allocates", "MemoryError"),
        ("crashes", "ended its process, with status -6"),
        ("hangs", "hung for 1 s"),
    ],
)
def test_what_goes_wrong_is_found_and_can_be_run_again(target, words, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "tests", raising=False)
    from tests.fuzz.supervisor import supervise

    lines: list[str] = []
    report = supervise("broken_targets", [target], lambda name: 1.0, seed=5, seconds=60, first=7, only=True, say=lines.append)
    assert len(report.failures) == len(lines) == (words is not None)
    if words is not None:
        assert words in lines[0] and f"--target {target} --seed 5 --case 7" in lines[0]
