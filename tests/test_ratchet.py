"""The number of `Any` in the library may only fall."""

from __future__ import annotations

from pathlib import Path

from count_any import counts

ALLOWED = Path(__file__).with_name("any_count.txt")


def test_the_number_of_any_only_falls():
    allowed, now = int(ALLOWED.read_text()), counts().total()
    assert now <= allowed, f"{now} Any, {allowed} allowed: name the type"
    assert now == allowed, f"{now} Any: write this number to {ALLOWED.name}, so that it stays there"
